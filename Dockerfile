# caat with the tested versions of its packages.
#
# CPU:  docker build -t caat --build-arg INDEX=URL .      URL: an index with PyTorch's builds without CUDA
# GPU:  docker build -t caat:cuda --build-arg BASE=pytorch/pytorch:2.11.0-cuda12.8-cudnn9-devel --build-arg TORCH= .
#       docker run --gpus all --ipc=host -v "$PWD:/work" caat:cuda pretrain launch.processes=8
ARG BASE=python:3.12-slim
FROM ${BASE}

# g++ is for train.compile, ip (iproute2) for the benchmarks on a slow network.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends g++ iproute2 \
    && rm -rf /var/lib/apt/lists/* && mkdir -p /opt/caat /work

# Empty: use the torch of the base image.
ARG TORCH=torch==2.13.0
ARG INDEX=
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1
WORKDIR /opt/caat
# Before the source, so that a change of the source does not install torch again.
RUN test -z "$TORCH" || python3 -m pip install ${INDEX:+--index-url "$INDEX"} "$TORCH"
COPY . .
RUN python3 -m pip install -c constraints.txt $TORCH -e ".[eval,tensorboard]"

WORKDIR /work
ENTRYPOINT ["caat"]
CMD ["--help"]
