"""LoRA adapters with random weights over a small model, written by peft itself."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM


def save(base: Path, folder: Path, target_modules: Any = ("q_proj", "v_proj", "down_proj"), **settings: Any) -> Path:
    """Writes adapter_config.json and adapter_model.safetensors; `settings` are LoraConfig's."""
    torch.manual_seed(1)
    targets = target_modules if isinstance(target_modules, str) else list(target_modules)
    options = {"r": 4, "lora_alpha": 8, "target_modules": targets} | settings
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**options))
    for parameter in model.parameters():  # peft starts with B = 0, which changes nothing
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(str(folder))
    return folder


def merged(base: Path, folder: Path) -> Any:
    """transformers' model with the adapter merged by peft, fp32."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
