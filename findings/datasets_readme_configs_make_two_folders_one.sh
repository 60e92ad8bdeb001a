#!/usr/bin/env bash
# datasets 5.2.0: a local folder whose README.md names its data files (configs: ... data_files:) is known to the cache by
# those names and the folder's relative path, and not by what the files hold or when they were written. Two such folders
# with one relative path, loaded from two working folders, or one folder before and after its files were replaced, are
# one dataset: the second call gives the first one's rows, without a word. Without the README, or by data_files, the
# files are told apart.
# Seen:
#   with a README, in a: ['of a']
#   with a README, in b: ['of a']
#   without, in a: ['of a']
#   without, in b: ['of b']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q datasets==5.2.0
export HF_HOME="$folder/cache" HF_HUB_OFFLINE=1
seen=$("$folder/venv/bin/python" - "$folder" 2>/dev/null <<'PYTHON'
import json
import os
import sys
import time
from pathlib import Path

from datasets import load_dataset

README = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: test.jsonl\n---\n"
for title, has_readme in (("with a README", True), ("without", False)):
    for name in "ab":
        place = Path(sys.argv[1], title, name)
        data = place / "owner" / "corpus"
        data.mkdir(parents=True)
        (data / "test.jsonl").write_text(json.dumps({"text": f"of {name}"}) + "\n")
        if has_readme:
            (data / "README.md").write_text(README)
        os.chdir(place)
        print(f"{title}, in {name}:", load_dataset("owner/corpus", split="test")["text"][:])
        time.sleep(1.1)  # the files of b are of another second
PYTHON
)
echo "$seen"
diff <(sed -n '/^# Seen:$/,/^set /s/^#   //p' "$0") <(echo "$seen")
