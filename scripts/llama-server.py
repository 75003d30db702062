#!/usr/bin/env python3
"""llama.cpp's own HTTP server, run from its Python package, on one port of this machine.

It speaks as the `llama-server` program does and is started like it, with the few options that the demo and the tests
need. SIGTERM and SIGINT end it at once, streams included, with exit code 0.
"""

import argparse
import os
import signal
import sys
import threading

try:
    import xllamacpp
except ImportError as fault:
    sys.exit(f"llama-server.py: {fault}: run this with .llama/bin/python, which `make demo` makes")


def arguments():
    parser = argparse.ArgumentParser(description="Serve one GGUF model with llama.cpp's HTTP server.")
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("port", type=int)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--alias", help="the model's name in answers; its path if absent")
    parser.add_argument("--threads", type=int, default=1, help="for computing (1)")
    parser.add_argument("--ctx", type=int, default=8192, help="tokens of context, shared by all slots (8192)")
    parser.add_argument("--parallel", type=int, default=2, help="slots: requests worked on at once (2)")
    parser.add_argument("--embeddings", action="store_true", help="serve embeddings too, the mean of the tokens")
    return parser.parse_args()


def parameters(args):
    p = xllamacpp.CommonParams()
    p.model.path = args.model
    p.hostnames = [args.host]
    p.port = args.port
    p.ui = False
    p.endpoint_metrics = True
    p.n_ctx = args.ctx
    p.n_parallel = args.parallel
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = args.threads
    if args.alias:
        p.model_alias = {args.alias}
    if args.embeddings:
        p.embedding = True
        p.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    return p


def main():
    args = arguments()
    if not os.path.isfile(args.model):
        sys.exit(f"llama-server.py: there is no model at {args.model}")
    try:
        server = xllamacpp.Server(parameters(args))  # returns once the model is loaded; stops when it is dropped
    except RuntimeError:
        sys.exit(f"llama-server.py: it did not start; its own log, above, says why")
    print("llama-server listens on", server.listening_address, flush=True)
    told_to_stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told_to_stop.set())
    told_to_stop.wait()
    # Not by way of the server's own shutdown: that waits for the next ping of each stream, up to half a minute.
    os._exit(0)


if __name__ == "__main__":
    main()
