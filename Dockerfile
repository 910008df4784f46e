# The README's `make demo`, in a container. Not built where it was written (no daemon there): docs/scaling.md.
#
#   docker build -t keelbench .                             for CPUs
#   docker build -t keelbench:cuda --target cuda .          for NVIDIA GPUs (the host brings driver and container toolkit)
#   docker run -v $PWD/work:/volume keelbench                 the demo; its report is work/runs/<time>/report.html
#   docker run --gpus all -v $PWD/work:/volume -v /data:/data keelbench:cuda python -m suite model=llama3 dataset=alpaca
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS base
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends make bubblewrap && rm -rf /var/lib/apt/lists/*
WORKDIR /keelbench
COPY . .
ENV PATH=/keelbench/.venv/bin:$PATH \
    SUITE_CACHE=/volume/cache SUITE_RUNS=/volume/runs SUITE_DATA=/data HF_HOME=/volume/hub \
    OMP_WAIT_POLICY=passive TOKENIZERS_PARALLELISM=false

FROM base AS cuda
# PyPI's torch for Linux brings CUDA's libraries.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN make setup-gpu
CMD ["python", "-m", "suite", "-m", "+experiment=demo"]

# Last, so that it is what a build without --target makes.
FROM base AS cpu
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN make setup
CMD ["python", "-m", "suite", "-m", "+experiment=demo"]
