#!/usr/bin/env bash
# Gets mlx-lm and MLX for the CPU from PyPI and prints the folder (setup_wheels.sh): 330 MB on disk, 20 seconds.
exec bash "$(dirname "$0")/setup_wheels.sh" mlx 'mlx[cpu]==0.32.4' mlx-lm==0.32.2 transformers==5.23.0
