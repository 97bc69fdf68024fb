"""ZeRO-Inference as one starts it by hand: `python zero_inference_by_hand.py JOB.json`, no phases.

What a user of DeepSpeedExamples' run_model.py does: build, initialise, generate once to warm up, generate, divide by
the clock. It takes the same DeepSpeed configuration and dummy weights as the trial.
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tasks" / "jobs"))


def main(path):
    """Print tokens per second of one generation."""
    import zero_inference

    zero_inference._prepare_environment()
    job = json.loads(Path(path).read_text())
    import torch

    engine = zero_inference._engine(job, torch, zero_inference._device(job, torch))
    model = engine.module
    model.generation_config.eos_token_id = None
    prompt = torch.tensor([[2, *range(4, job["prompt_len"] + 3)]] * job["batch_size"], device=engine.device)
    passes = []
    model.register_forward_pre_hook(lambda *_: passes.append(time.monotonic()))  # as run_model.py times its prefill
    for count in (1, job["gen_len"]):
        passes.clear()
        with torch.no_grad():
            model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                min_new_tokens=count,
                max_new_tokens=count,
            )
        seconds = time.monotonic() - passes[0]  # the trial's definition: from the first pass on
    print(f"total throughput: {job['batch_size'] * job['gen_len'] / seconds:.6f} token/s", flush=True)
    zero_inference._release(torch, engine)


if __name__ == "__main__":
    main(sys.argv[1])
