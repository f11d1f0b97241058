"""The search that the flags ask for, from the calibration text to the results file. What it does to a model stands in
model_search.py; how an interrupted one is taken up, in unfinished.py.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from awq import calibration, network, results
from awq.image_calibration import Embed, image_windows, read_pictures
from awq.lazy_network import LazyNetwork
from awq.model import ModelFolder, load_tokenizer, open_model
from awq.model_search import search_model
from awq.progress import say
from awq.quantize import QuantConfig
from awq.search import BlockSearch
from awq.unfinished import UnfinishedSearch


def run_search(args: argparse.Namespace, config: QuantConfig, load_embed: Callable[[Path], Embed]) -> None:
    """Scales and clips, written to --dump_awq.

    Args:
        args: parsed by awq.flags.
        config: how weights are rounded.
        load_embed: from the model's folder to what makes embeddings of a picture.

    Raises:
        UserError: the model or the calibration data cannot be had, or values are not finite.
    """
    model = open_model(args.model_path)
    model.check_group(config)
    if args.dump_awq.exists():
        results.load_results(args.dump_awq, model.identity(), config, model.shapes(), say)  # refuses another model's
        say(f"Found existing AWQ results {args.dump_awq}, exit.")
        return
    tokenizer = load_tokenizer(args.model_path)
    # Files are read first: what is wrong with them is said before a model is loaded.
    tokens, images = read_calibration(args, model, tokenizer, load_embed)
    identity = model.identity()
    settings = {
        **results.metadata(identity, config),
        "search": args.search,
        "dtype": args.dtype,
        "windows": [args.n_samples, args.seqlen, args.seed],
        "calibration": calibration.digest(tokens, images),
    }
    unfinished = UnfinishedSearch(args.dump_awq, settings, say)
    if tokens is None:
        tokens = unfinished.tokens()
    if tokens is None:
        tokens = calibration.self_written(writer(args, model), tokenizer, args.n_samples, args.seqlen, args.seed)
        unfinished.keep_tokens(tokens)
    told = "" if images is None else f", {len(images)} of them of images"
    say(f"calibration: {tokens.shape[0]} windows of {tokens.shape[1]} tokens{told}")
    say_what_is_left_out(model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lazy = LazyNetwork(args.model_path, model.skeleton, model.compute_dtype(args.dtype), device)
    block_search = BlockSearch(model.mapping, config, args.search)
    found = search_model(lazy, block_search, tokens, args.layers, unfinished, images)
    results.save_results(found, args.dump_awq, identity, config)
    unfinished.remove()
    say(f"AWQ results saved: {args.dump_awq}")


def read_calibration(
    args: argparse.Namespace, model: ModelFolder, tokenizer: Any, load_embed: Callable[[Path], Embed]
) -> tuple[Tensor | None, Tensor | None]:
    """Windows of the text or pictures that are named, and the pictures' embeddings; None where nothing is."""
    windows = (args.n_samples, args.seqlen, args.seed)
    if args.calib_images:
        pictures = read_pictures(args.calib_images)
        num_rows = len(model.skeleton.network.get_input_embeddings().weight)  # type: ignore[operator]
        return image_windows(pictures, tokenizer, load_embed(args.model_path), num_rows, *windows)
    return calibration.from_source(args.calib_data, tokenizer, *windows) if args.calib_data else None, None


def say_what_is_left_out(model: ModelFolder) -> None:
    if not model.mapping.known:
        kind = model.skeleton.config.model_type
        say(f"{kind} has no mapping: each Linear is clipped on its own, nothing is scaled, the rest stays in 16 bits")
    if model.skeleton.surplus:
        say(f"{len(model.skeleton.surplus)} tensors are not the language model's, such as {model.skeleton.surplus[0]}")


def writer(args: argparse.Namespace, model: ModelFolder) -> nn.Module:
    """The whole model, to write the calibration text."""
    dtype = model.compute_dtype(args.dtype)
    network.check_memory(model.skeleton, dtype)
    if args.layers:
        say("the whole model is loaded to write the calibration text; with --calib_data FILE only single layers are")
    return network.place(network.load_network(args.model_path, dtype), None, all_gpus=False, by_size=False)
