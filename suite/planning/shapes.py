"""What a model's cost depends on, without its weights."""

import math
from dataclasses import dataclass
from typing import Any

from eval.flops import Shape


@dataclass(frozen=True)
class ModelShape:
    """A Llama-like decoder (grouped-query attention, gated feed-forward)."""

    name: str
    blocks: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    tied: bool = False  # one matrix is embedding and head

    @classmethod
    def of_config(cls, name: str, config: Any) -> "ModelShape":
        """Of a transformers configuration (``AutoConfig.from_pretrained``)."""
        text = config.get_text_config()
        heads = text.num_attention_heads
        return cls(
            name,
            text.num_hidden_layers,
            text.hidden_size,
            text.intermediate_size,
            heads,
            getattr(text, "num_key_value_heads", None) or heads,
            getattr(text, "head_dim", None) or text.hidden_size // heads,
            text.vocab_size,
            bool(text.tie_word_embeddings),
        )

    @property
    def block_parameters(self) -> int:
        """Of all blocks' matrices: attention's four and the feed-forward's three."""
        attention = self.hidden * self.head_width * (2 * self.heads + 2 * self.kv_heads)
        return self.blocks * (attention + 3 * self.hidden * self.intermediate)

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """Norms, a ten-thousandth, left out."""
        return self.block_parameters + self.embedding * (1 if self.tied else 2)

    def lora_parameters(self, rank: int) -> int:
        """Of LoRA matrices on all seven projections of every block."""
        query, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        sides = 2 * (self.hidden + query) + 2 * (self.hidden + keys) + 3 * (self.hidden + self.intermediate)
        return rank * sides * self.blocks

    @property
    def operations(self) -> Shape:
        """What ``eval.flops`` counts a stage's operations by."""
        return Shape(self.block_parameters, 0, self.blocks, self.heads * self.head_width, self.embedding)

    def forward(self, tokens: float, length: float, *, share: float = 1.0) -> float:
        """Operations of ``tokens`` through the blocks, in sequences of ``length``.

        Args:
            share: of the blocks, from the first.
        """
        return share * tokens / length * self.operations.forward([length])

    def head(self, positions: float) -> float:
        """Operations of the logits at ``positions``."""
        return self.operations.forward([], positions)

    def kv_bytes(self, tokens: float) -> float:
        """Of the keys and values of ``tokens``, two bytes a number."""
        return 2.0 * 2 * self.blocks * self.kv_heads * self.head_width * tokens

    def decoding_seconds(
        self,
        n_prompts: int,
        prompt_tokens: float,
        new_tokens: float,
        at_once: float,
        *,
        peak: float,
        bandwidth: float,
    ) -> float:
        """The least that new tokens take, prompts left out: what they read from memory at full bandwidth, or what they
        compute at the peak, whichever is more."""
        read = math.ceil(n_prompts / at_once) * new_tokens * 2.0 * self.parameters
        read += n_prompts * new_tokens * self.kv_bytes(prompt_tokens + new_tokens / 2)
        computed = self.forward(n_prompts * new_tokens, prompt_tokens + new_tokens) + self.head(n_prompts * new_tokens)
        return max(read / bandwidth, computed / peak)


# From the models' published configurations.
SHAPES = {
    shape.name: shape
    for shape in (
        ModelShape("smollm2", 30, 576, 1536, 9, 3, 64, 49_152, tied=True),
        ModelShape("llama3_2_1b", 16, 2048, 8192, 32, 8, 64, 128_256, tied=True),
        ModelShape("phi3", 32, 3072, 8192, 32, 32, 96, 32_064),
        ModelShape("mistral", 32, 4096, 14_336, 32, 8, 128, 32_768),
        ModelShape("qwen2_5", 28, 3584, 18_944, 28, 4, 128, 152_064),
        ModelShape("llama3", 32, 4096, 14_336, 32, 8, 128, 128_256),
        ModelShape("llama3_1", 32, 4096, 14_336, 32, 8, 128, 128_256),
        ModelShape("llama3_70b", 80, 8192, 28_672, 64, 8, 128, 128_256),
    )
}
