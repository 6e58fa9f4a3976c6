"""Documents of token ids (JSONL, as `tools/heal/data.py` writes them) as text, separated by lines `<|endoftext|>`.

    text.py --gguf M held-factbook.jsonl > factbook.txt
"""
import argparse
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../heal"))
from model import EOT, tokenizer  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--gguf", required=True)
parser.add_argument("file")
args = parser.parse_args()
tok = tokenizer(args.gguf)
with open(args.file) as lines:
    documents = [[i for i in json.loads(line)["ids"] if i != EOT] for line in lines]
print("\n<|endoftext|>\n".join(tok.decode(ids, skip_special_tokens=False) for ids in documents))
