"""What plain transformers generates from a checkpoint: `python reference.py CHECKPOINT IDS.json BATCH GEN_LEN DTYPE`.

With `make` as the first argument it writes such a checkpoint instead, of random weights in 16 bits.
"""

import json
import sys

import torch
from transformers import OPTConfig, OPTForCausalLM


def make(folder, shape, dtype):
    """Write a checkpoint of random weights, wide apart, so that the likeliest token is never a close call."""
    torch.manual_seed(7)
    config = OPTConfig(
        num_hidden_layers=shape["layers"],
        hidden_size=shape["hidden"],
        word_embed_proj_dim=shape["hidden"],
        ffn_dim=4 * shape["hidden"],
        num_attention_heads=shape["heads"],
        vocab_size=shape["vocabulary"],
        max_position_embeddings=shape["positions"],
        init_std=0.1,
    )
    OPTForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)


def tokens(folder, ids, batch, gen_len, dtype):
    """Return prompt and generated ids of every sequence, greedily, never stopping early."""
    model = OPTForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    prompt = torch.tensor([ids] * batch)
    model.generation_config.eos_token_id = None
    found = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=gen_len,
        min_new_tokens=gen_len,
    )
    return found.tolist()


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2], json.loads(sys.argv[3]), sys.argv[4])
    else:
        folder, ids, batch, gen_len, dtype = sys.argv[1:]
        print(json.dumps(tokens(folder, json.loads(ids), int(batch), int(gen_len), dtype)))
