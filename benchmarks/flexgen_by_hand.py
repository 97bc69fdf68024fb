"""FlexGen's benchmark as one starts it by hand: `python flexgen_by_hand.py ARGUMENTS.json`, nothing listening.

The arguments are FlexGen's own; beside them only what the machine forces on anyone: the stand-ins where there is no
CUDA, a tokenizer where none can be downloaded, the numbers of a model that FlexGen has no name for.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tasks" / "jobs"))


def main(path):
    """Run FlexGen, which prints its throughput."""
    job = json.loads(Path(path).read_text())
    import torch
    from generation_log import device

    if device(job, torch) == "cpu":
        import flexgen_without_cuda

        flexgen_without_cuda.install()
    from flexgen import flex_opt, opt_config

    class Tokenizer:
        from_pretrained = staticmethod(
            lambda *_, **__: (
                lambda texts, padding, max_length: argparse.Namespace(
                    input_ids=[list(range(2, max_length + 2))] * len(texts)
                )
            )
        )

    shape = job["shape"]
    config = opt_config.OptConfig(
        max_seq_len=shape["positions"],
        num_hidden_layers=shape["layers"],
        n_head=shape["heads"],
        hidden_size=shape["hidden"],
        input_dim=shape["hidden"],
        ffn_embed_dim=4 * shape["hidden"],
        vocab_size=shape["vocabulary"],
    )
    flex_opt.AutoTokenizer = Tokenizer
    flex_opt.get_opt_config = lambda name: config
    parser = argparse.ArgumentParser()
    flex_opt.add_parser_arguments(parser)
    flex_opt.run_flexgen(parser.parse_args([*job["arguments"], "--path", "_DUMMY_"]))


if __name__ == "__main__":
    main(sys.argv[1])
