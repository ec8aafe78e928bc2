# mg2l with compiled operators: `docker build -t mg2l .` for CPUs,
# `docker build -t mg2l-cuda --build-arg CUDA=1 --build-arg BASE=nvidia/cuda:12.8.1-devel-ubuntu24.04 .`
# for GPUs (then `docker run --gpus all`). Runs are kept in /runs: `-v $PWD/runs:/runs`.
ARG BASE=ubuntu:24.04
FROM ${BASE}
ARG CUDA=0
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
       g++ git libegl1 libgl1-mesa-dri libopengl0 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/mg2l
ENV PATH=/opt/mg2l/bin:$PATH
# PyPI's torch has CUDA; for CPUs this index has one that is ten times smaller, to build with as well.
RUN if [ "$CUDA" = 0 ]; then pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu; \
    else pip install --no-cache-dir torch; fi
COPY . /src
RUN if [ "$CUDA" = 0 ]; then export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu; fi; \
    MG2L_NATIVE=1 MG2L_CUDA=$CUDA pip install --no-cache-dir "/src[analysis,report,video]" && mg2l info
WORKDIR /runs
ENTRYPOINT ["mg2l"]
CMD ["--help"]
