"""Tiny random models of every family that the hub's hooks are known for, as folders."""

from pathlib import Path

import torch
import transformers as hf

VOCABULARY, CONTEXT = 23, 12

_LLAMA = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 28, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_NEOX = {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"} | {"rotary_pct": 0.5}
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT, "bos_token_id": 1, "eos_token_id": 2}
_SCALED = {"rope_theta": 10000.0, "original_max_position_embeddings": 6}
_LONGROPE = {**_SCALED, "rope_type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0]}
_LLAMA3 = {**_SCALED, "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_BERT = {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"} | {"pad_token_id": 0}
_ROBERTA = {**_BERT, "pad_token_id": 1, "max_position_embeddings": CONTEXT + 2, "bos_token_id": 0}
_GEMMA2 = {**_LLAMA, "head_dim": 4, "sliding_window": 4, "query_pre_attn_scalar": 4}

CONFIGS = {
    "llama": lambda: hf.LlamaConfig(**_LLAMA),
    "llama-tied": lambda: hf.LlamaConfig(**_LLAMA, tie_word_embeddings=True),
    "llama-scaled": lambda: hf.LlamaConfig(**_LLAMA, rope_parameters=_LLAMA3),
    "mistral": lambda: hf.MistralConfig(**_LLAMA, sliding_window=4, head_dim=4),
    "qwen2": lambda: hf.Qwen2Config(**_LLAMA),
    "qwen3": lambda: hf.Qwen3Config(**_LLAMA, head_dim=4),
    "smollm3": lambda: hf.SmolLM3Config(**_LLAMA, no_rope_layers=[1, 0, 1]),
    "olmo": lambda: hf.OlmoConfig(**_LLAMA),
    "olmo2": lambda: hf.Olmo2Config(**_LLAMA),
    "olmo3": lambda: hf.Olmo3Config(**_LLAMA, sliding_window=4),
    "phi3": lambda: hf.Phi3Config(**_LLAMA),
    "phi3-scaled": lambda: hf.Phi3Config(**_LLAMA, original_max_position_embeddings=6, rope_parameters=_LONGROPE),
    "gemma": lambda: hf.GemmaConfig(**_LLAMA, head_dim=4),
    "gemma2": lambda: hf.Gemma2Config(**_GEMMA2, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    "gemma3": lambda: hf.Gemma3TextConfig(**_GEMMA2),
    "gpt2": lambda: hf.GPT2Config(**_GPT2),
    "gpt2-wide": lambda: hf.GPT2Config(**_GPT2, n_inner=40, tie_word_embeddings=False),
    "gpt-neo": lambda: hf.GPTNeoConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_layers=2, num_heads=4, max_position_embeddings=CONTEXT, window_size=4,
        attention_types=[[["global", "local"], 1]], bos_token_id=1, eos_token_id=2,
    ),
    "gpt-neox": lambda: hf.GPTNeoXConfig(**_NEOX),
    "gpt-neox-sequential": lambda: hf.GPTNeoXConfig(**_NEOX, use_parallel_residual=False),
    "bert": lambda: hf.BertConfig(**_BERT),
    "roberta": lambda: hf.RobertaConfig(**_ROBERTA),
    "xlm-roberta": lambda: hf.XLMRobertaConfig(**_ROBERTA),
    "camembert": lambda: hf.CamembertConfig(**_ROBERTA),
    "distilbert": lambda: hf.DistilBertConfig(
        vocab_size=VOCABULARY, dim=16, hidden_dim=28, n_layers=3, n_heads=4, max_position_embeddings=CONTEXT
    ),
}  # fmt: skip

PARALLEL, ENCODERS = ("gpt-neox",), ("bert", "roberta", "xlm-roberta", "camembert", "distilbert")


def write(folder: Path, name: str, seed: int = 0) -> Path:
    """A model of this name as Hugging Face saves it, with weights that are nowhere trivial."""
    torch.manual_seed(seed)
    network = (hf.AutoModel if name in ENCODERS else hf.AutoModelForCausalLM).from_config(CONFIGS[name]())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    network.save_pretrained(folder / name)
    return folder / name
