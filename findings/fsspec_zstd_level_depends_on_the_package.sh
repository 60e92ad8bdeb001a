#!/usr/bin/env bash
# fsspec 2026.9.0 (and so datatrove's and datasets' writers of .zst): the same call compresses at level 10 where the
# package zstandard is what it finds, and at level 3 once backports.zstd is installed too, or on Python 3.14, whose
# standard library has zstd. Files of the same content differ in size (here by 7 %, of 9 MB of English as JSON lines by
# 19 %), and no argument says the level.
# Seen:
#   zstandard alone: as its level 10 True
#   with backports.zstd: as its level 3 True
#   with backports.zstd larger by 7 %
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q fsspec==2026.9.0 zstandard==0.25.0
cat > "$folder/size.py" <<'PYTHON'
import random
import sys
from pathlib import Path

import fsspec
import zstandard

draw = random.Random(0)
words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 8))) for _ in range(2000)]
content = " ".join(draw.choices(words, weights=range(1, 2001), k=500_000)).encode()
path = Path(sys.argv[1])
with fsspec.open(str(path), "wb", compression="zstd") as file:
    file.write(content)
size, level = path.stat().st_size, int(sys.argv[2])
near = abs(size / len(zstandard.ZstdCompressor(level=level).compress(content)) - 1) < 0.005
print(f"as its level {level} {near}", size)
PYTHON
own=$(realpath "$0")
cd "$folder"
read -r -a alone <<< "$(venv/bin/python size.py a.zst 10)"
venv/bin/pip install -q backports.zstd==1.8.0
read -r -a beside <<< "$(venv/bin/python size.py b.zst 3)"
seen=$(
  echo "zstandard alone: ${alone[*]:0:5}"
  echo "with backports.zstd: ${beside[*]:0:5}"
  echo "with backports.zstd larger by $(venv/bin/python -c "print(round(100 * ${beside[5]} / ${alone[5]} - 100))") %"
)
echo "$seen"
diff <(sed -n '/^# Seen:$/,/^set /s/^#   //p' "$own") <(echo "$seen")
