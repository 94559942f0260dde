"""Measures one dimension by the official package; a program for the interpreter that has it.

It is run by its path, outside this toolkit, and imports nothing of it.
"""

import json
import sys


def main(request_file: str) -> None:
    """Runs the request in a JSON file, as `tts_vision.eval.vbench.official` writes it."""
    with open(request_file, encoding="utf-8") as file:
        request = json.load(file)
    import torch  # type: ignore[import-not-found,unused-ignore]
    from vbench import VBench

    judge = VBench(torch.device(request["device"]), request["full_info"], request["output"])
    judge.evaluate(
        videos_path=request["videos"],
        name=request["dimension"],
        prompt_list=request["prompts"],
        dimension_list=[request["dimension"]],
        mode=request["mode"],
    )


if __name__ == "__main__":
    main(sys.argv[1])
