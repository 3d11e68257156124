#!/usr/bin/env bash
# Split a virtual environment into three folders that laid over each other give it back: an image pushes and pulls only
# the layers that changed. split-layers.sh VENV FOLDER
set -euo pipefail
venv=$1 out=$2
site=$(cd "$venv" && echo lib/python3.*/site-packages)
mkdir -p "$out/cuda/$site" "$out/torch/$site"
for part in nvidia triton; do
  if [ -e "$venv/$site/$part" ]; then mv "$venv/$site/$part" "$out/cuda/$site/"; fi
done
for part in torch torchvision; do
  mv "$venv/$site/$part" "$out/torch/$site/"
done
mv "$venv" "$out/rest"
