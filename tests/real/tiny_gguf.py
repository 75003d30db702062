#!/usr/bin/env python3
"""Writes a tiny language model that llama.cpp can serve, from nothing, in under a second.

The model says one sentence over and over, whatever it is asked and at any usual temperature, yet everything around
the words is real: tokenizer, chat template, KV cache, slots, sampling, streams. A test can so know every answer.

How it works. Each word has a random unit vector as its embedding. Attention and feed-forward weights are close to
nothing, so what reaches the output is the last token's own embedding, and the output row of each word is the
embedding of the word before it: the largest logit is always the next word's. A token outside the sentence has nearly
the embedding of one inside, its number choosing which, and so leads back into it.

The format is GGUF version 3: a header with counts, then metadata, then a description of each tensor, then the
tensors themselves, all little-endian and aligned to 32 bytes. Standard library only.
"""

import argparse
import array
import math
import random
import struct
import sys

SENTENCE = (
    "a small lighthouse keeps watch over the grey harbour while every evening boat comes home past its patient "
    "turning lamp and nobody on board ever asks who lit it first"
).split()

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

HEADS, KV_HEADS = 4, 2
PULL = 4.0  # how far the next word's logit stands out; at 4, sampling never chooses another
ALIGNMENT = 32
SPACE = "\u2581"  # how SentencePiece writes a space

# Types of tokens and of metadata values, as GGUF numbers them.
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
TENSOR_F32 = 0


def vocabulary():
    """Tokens as (text, score, type). Every text can be written: words of the sentence, characters, bytes at last."""
    tokens = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    tokens += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    tokens += [("<|im_start|>", 0.0, CONTROL), ("<|im_end|>", 0.0, CONTROL)]
    # The tokenizer joins two neighbours where the joined text is a token: each word needs all its beginnings.
    pieces = [SPACE] + [chr(code) for code in range(0x21, 0x7F)]
    pieces += [(SPACE + word)[:length] for word in SENTENCE for length in range(2, len(word) + 2)]
    tokens += [(piece, len(piece) - 100.0, NORMAL) for piece in dict.fromkeys(pieces)]
    return tokens


def weights(ids, width, layers, ends):
    """The tensors as (name, dimensions, values), the fastest dimension first."""
    dice = random.Random(7)

    def unit_vector():
        vector = [dice.gauss(0, 1) for _ in range(width)]
        norm = math.sqrt(sum(x * x for x in vector))
        return [x / norm for x in vector]

    def next_to_nothing(*dimensions):
        return [dice.gauss(0, 0.002) for _ in range(math.prod(dimensions))]

    words = [ids[SPACE + word] for word in SENTENCE]
    vectors = [unit_vector() for _ in words]
    # Not the last word's: with `ends` that would end the answer before it began.
    embedding = [[x + dice.gauss(0, 0.01) for x in vectors[token % (len(words) - 1)]] for token in range(len(ids))]
    output = [next_to_nothing(width) for _ in ids]
    followers = words[1:] + [ids["<|im_end|>"] if ends else words[0]]
    for word, follower, vector in zip(words, followers, vectors):
        embedding[word] = vector
        output[follower] = [PULL * x for x in vector]

    def flat(rows):
        return [x for row in rows for x in row]

    yield "token_embd.weight", (width, len(ids)), flat(embedding)
    yield "output.weight", (width, len(ids)), flat(output)
    yield "output_norm.weight", (width,), [1.0] * width
    kv_width, inner = width * KV_HEADS // HEADS, 2 * width
    matrices = {
        "attn_q": (width, width),
        "attn_k": (width, kv_width),
        "attn_v": (width, kv_width),
        "attn_output": (width, width),
        "ffn_gate": (width, inner),
        "ffn_up": (width, inner),
        "ffn_down": (inner, width),
    }
    for layer in range(layers):
        for norm in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{norm}.weight", (width,), [1.0] * width
        for name, dimensions in matrices.items():
            yield f"blk.{layer}.{name}.weight", dimensions, next_to_nothing(*dimensions)


def text(value):
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def metadata(tokens, ids, width, layers, context):
    """The key-value pairs, encoded."""

    def pair(key, kind, value):
        return text(key) + struct.pack("<I", kind) + value

    def number(key, value):
        return pair(key, UINT32, struct.pack("<I", value))

    def listed(key, kind, values):
        return pair(key, ARRAY, struct.pack("<IQ", kind, len(values)) + b"".join(values))

    return [
        pair("general.architecture", STRING, text("llama")),
        pair("general.name", STRING, text("tiny lighthouse")),
        number("general.alignment", ALIGNMENT),
        number("general.file_type", TENSOR_F32),
        number("llama.context_length", context),
        number("llama.embedding_length", width),
        number("llama.block_count", layers),
        number("llama.feed_forward_length", 2 * width),
        number("llama.attention.head_count", HEADS),
        number("llama.attention.head_count_kv", KV_HEADS),
        number("llama.rope.dimension_count", width // HEADS),
        number("llama.vocab_size", len(tokens)),
        pair("llama.attention.layer_norm_rms_epsilon", FLOAT32, struct.pack("<f", 1e-5)),
        pair("tokenizer.ggml.model", STRING, text("llama")),
        listed("tokenizer.ggml.tokens", STRING, [text(token) for token, _, _ in tokens]),
        listed("tokenizer.ggml.scores", FLOAT32, [struct.pack("<f", score) for _, score, _ in tokens]),
        listed("tokenizer.ggml.token_type", INT32, [struct.pack("<i", kind) for _, _, kind in tokens]),
        number("tokenizer.ggml.unknown_token_id", ids["<unk>"]),
        number("tokenizer.ggml.bos_token_id", ids["<s>"]),
        number("tokenizer.ggml.eos_token_id", ids["<|im_end|>"]),
        pair("tokenizer.ggml.add_bos_token", BOOL, b"\x01"),
        pair("tokenizer.chat_template", STRING, text(CHAT_TEMPLATE)),
    ]


def padded(data):
    return data + bytes(-len(data) % ALIGNMENT)


def gguf(width, layers, context, ends):
    """The whole file."""
    tokens = vocabulary()
    ids = {token: number for number, (token, _, _) in enumerate(tokens)}
    pairs = metadata(tokens, ids, width, layers, context)
    descriptions, data = [], bytearray()
    for name, dimensions, values in weights(ids, width, layers, ends):
        descriptions.append(
            text(name)
            + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
            + struct.pack("<IQ", TENSOR_F32, len(data))
        )
        floats = array.array("f", values)
        if sys.byteorder == "big":
            floats.byteswap()
        data += padded(floats.tobytes())
    head = b"GGUF" + struct.pack("<IQQ", 3, len(descriptions), len(pairs)) + b"".join(pairs + descriptions)
    return padded(head) + data


def main():
    parser = argparse.ArgumentParser(description="Write a tiny model that says one sentence.")
    parser.add_argument("file", help="where to write it")
    parser.add_argument("--ends", action="store_true", help="stop after the sentence, instead of saying it again")
    parser.add_argument("--context", type=int, default=32768, help="tokens it is said to be trained for (32768)")
    parser.add_argument("--width", type=int, default=64, help="of the embeddings; wider is slower (64)")
    parser.add_argument("--layers", type=int, default=2, help="more is slower (2)")
    arguments = parser.parse_args()
    content = gguf(arguments.width, arguments.layers, arguments.context, arguments.ends)
    with open(arguments.file, "wb") as file:
        file.write(content)


if __name__ == "__main__":
    main()
