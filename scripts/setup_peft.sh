#!/usr/bin/env bash
# Gets PEFT and what it runs on from PyPI and prints the folder (setup_wheels.sh): 3 GB to load, 6 GB on disk, two minutes,
# nearly all of it the GPU libraries without which the Linux wheel of torch does not start.
exec bash "$(dirname "$0")/setup_wheels.sh" peft peft==0.21.2 torch==2.15.0 transformers==5.23.0 safetensors==0.8.0
