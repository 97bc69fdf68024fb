"""Scripts that run as child processes, each under the interpreter of its engine; none imports another package of ours."""
