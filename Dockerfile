# Build:   docker build -t ppo .
# Train:   docker run --init -v ppo-checkpoints:/results/checkpoints ppo --env_name=PongNoFrameskip-v4
# Record:  docker run --init -v ppo-checkpoints:/results/checkpoints -v "$PWD/assets:/results/assets" \
#              --user "$(id -u):$(id -g)" ppo --env_name=PongNoFrameskip-v4 --mode=record
#
# Training uses one rank per core that the container may use; narrow that with --cpuset-cpus=0-3 (--cpus hides no core).
# Ranks meet in /dev/shm: 16 of them fill 1.3 MB and each wants 16 MB free at its start, so Docker's 64 MB will do
# without --shm-size. Nothing else is needed from the system, ssh included, while all ranks run in one container.
FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1

# Compiles what makes the pictures of a game; without it the program does the same, more slowly.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*

# What is installed changes less often than the code, so it comes first.
WORKDIR /opt/ppo
COPY scripts/constraints.txt scripts/
# PyPI's torch brings gigabytes of CUDA libraries; this index has it for CPUs.
RUN pip install --constraint scripts/constraints.txt --index-url https://download.pytorch.org/whl/cpu torch
COPY setup.py pyproject.toml README.md ./
COPY ppo/__init__.py ppo/
COPY ppo/algorithm/_pixels.c ppo/algorithm/
COPY ppo/envs/atari/_blended_colours.c ppo/envs/atari/_screens.c ppo/envs/atari/
# Editable: the rest of the code comes after it.
RUN pip install --constraint scripts/constraints.txt --editable ".[mpi]"
COPY . .

# Volumes start with these folders' owner and mode; open to all, so that --user works with any number.
RUN useradd --create-home --uid 1000 ppo \
    && install --directory --owner=ppo --mode=1777 /results \
        /results/checkpoints /results/runs /results/assets
VOLUME ["/results/checkpoints", "/results/runs", "/results/assets"]
WORKDIR /results
USER ppo

ENTRYPOINT ["ppo"]
