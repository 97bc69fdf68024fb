"""Scripts that run as child processes, under the interpreter of their engine; none imports a package of ours."""
