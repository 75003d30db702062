#!/usr/bin/env python3
"""sglang-router with its own options, without what its own launcher loads for other uses."""

import argparse

from sglang_router.router import Router
from sglang_router.router_args import RouterArgs

parser = argparse.ArgumentParser(description="Run sglang-router.")
RouterArgs.add_cli_args(parser, use_router_prefix=False)
Router.from_args(RouterArgs.from_cli_args(parser.parse_args(), use_router_prefix=False)).start()
