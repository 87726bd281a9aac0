# The CUDA and nvcc that the pinned torch (requirements.txt) is of, so that `make install` builds the CUDA kernels as well.
# Not run where this project is developed: there is neither Docker nor a GPU.
#
#   docker build -t alexnet_mp .
#   docker run --rm --gpus all alexnet_mp                                    # the doctor's page
#   docker run --rm --gpus all -v "$PWD:/work" -w /work alexnet_mp train --gpus 0,1 --data SET --out RUN
ARG CUDA=13.0.2
FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04

# The packages of one Ubuntu, whose versions its archive doesn't keep.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git make python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /alexnet_mp
COPY . .
RUN make install
ENV PATH=/alexnet_mp/.venv/bin:$PATH
ENTRYPOINT ["alexnet-mp"]
CMD ["doctor"]
