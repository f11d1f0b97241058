"""The conversations of llava/conversation.py, and which of them a model's name asks for. Data only."""

from tinyserve.serve.templates import Template

_HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
_USER = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_TAGGED = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant is able to understand the visual content that the user provides, and assist the user with a variety "
    "of tasks using natural language.The visual content will be provided with the following format: "
    "<Image>visual content</Image>."
)
_LLAMA_2 = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
    "not correct. If you don't know the answer to a question, please don't share false information."
)
_LLAVA_LLAMA_2 = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
_MPT = "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers."
_ENERGY = (
    "What are the key differences between renewable and non-renewable energy sources?",
    "Renewable energy sources are those that can be replenished naturally in a relatively "
    "short amount of time, such as solar, wind, hydro, geothermal, and biomass. "
    "Non-renewable energy sources, on the other hand, are finite and will eventually be "
    "depleted, such as coal, oil, and natural gas. Here are some key differences between "
    "renewable and non-renewable energy sources:\n"
    "1. Availability: Renewable energy sources are virtually inexhaustible, while non-renewable "
    "energy sources are finite and will eventually run out.\n"
    "2. Environmental impact: Renewable energy sources have a much lower environmental impact "
    "than non-renewable sources, which can lead to air and water pollution, greenhouse gas emissions, "
    "and other negative effects.\n"
    "3. Cost: Renewable energy sources can be more expensive to initially set up, but they typically "
    "have lower operational costs than non-renewable sources.\n"
    "4. Reliability: Renewable energy sources are often more reliable and can be used in more remote "
    "locations than non-renewable sources.\n"
    "5. Flexibility: Renewable energy sources are often more flexible and can be adapted to different "
    "situations and needs, while non-renewable sources are more rigid and inflexible.\n"
    "6. Sustainability: Renewable energy sources are more sustainable over the long term, while "
    "non-renewable sources are not, and their depletion can lead to economic and social instability.\n",
)

_PEOPLE = ("Human", "Assistant")
_CAPITALS = ("USER", "ASSISTANT")
_CHATML = ("<|im_start|>user\n", "<|im_start|>assistant\n")


def _chatml(system: str) -> Template:
    return Template("MPT", _CHATML, "<|im_end|>", system=system, system_template="<|im_start|>system\n{}")


_VICUNA_V0 = Template("SINGLE", _PEOPLE, "###", system=_HUMAN, examples=_ENERGY)
_VICUNA_V1 = Template("TWO", _CAPITALS, " ", "</s>", _USER)
_PLAIN = Template("PLAIN", ("", ""), "\n")
_CHATML_DIRECT = _chatml("Answer the questions.")

TEMPLATES = {
    "default": _VICUNA_V0,
    "v0": _VICUNA_V0,
    "v1": _VICUNA_V1,
    "vicuna_v1": _VICUNA_V1,
    "llama_2": Template("LLAMA_2", _CAPITALS, "<s>", "</s>", _LLAMA_2),
    "mistral_instruct": Template("LLAMA_2", _CAPITALS, "", "</s>"),
    "chatml_direct": _CHATML_DIRECT,
    "mistral_direct": _CHATML_DIRECT,
    "plain": _PLAIN,
    "v0_plain": _PLAIN,
    "llava_v0": Template("SINGLE", _PEOPLE, "###", system=_HUMAN),
    "v0_mmtag": Template("SINGLE", _PEOPLE, "###", system=_TAGGED, tags_images=True),
    "llava_v1": Template("TWO", _CAPITALS, " ", "</s>", _HUMAN),
    "v1_mmtag": Template("TWO", _CAPITALS, " ", "</s>", _TAGGED, tags_images=True),
    "llava_llama_2": Template("LLAMA_2", _CAPITALS, "<s>", "</s>", _LLAVA_LLAMA_2),
    "mpt": _chatml(_MPT),
}

# Parts of a name, all of which must be in it, and the template they ask for; the first that fits. As
# llava/serve/gradio_web_server.py and cli.py have it, without the one that they name and do not define.
_BY_NAME = (
    (("llama-2",), "llava_llama_2"),
    (("mistral", "hermes"), "chatml_direct"),
    (("mixtral", "hermes"), "chatml_direct"),
    (("mistral",), "mistral_instruct"),
    (("mixtral",), "mistral_instruct"),
    (("v1.6-34b",), "chatml_direct"),
    (("v1", "mmtag"), "v1_mmtag"),
    (("v1",), "llava_v1"),
    (("mpt",), "mpt"),
    (("mmtag",), "v0_mmtag"),
)


def template_for(model_name: str) -> str:
    """What LLaVA would take for a model of that name."""
    name = model_name.lower()
    return next((template for parts, template in _BY_NAME if all(part in name for part in parts)), "llava_v0")
