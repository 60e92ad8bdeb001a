"""Latent attention (DeepSeek-AI 2024, DeepSeek-V2, section 2.1): keys and values come out of one latent vector a token;
the rotary part of the key is shared by all heads. Queries may come out of a latent vector of their own."""

from common.keys import key
from components.mixers.attention.spec import Heads, biases
from components.registry import register_spec
from components.spec import Config, Product, Remembered, Weights, matrices, vectors


@register_spec
class LatentAttention(Heads):
    name, label, letter, title = "latent_attention", "Latent", "C", "latent attention"
    what = "latent attention"

    q_lora_rank: int | None = key(
        None, "of latent attention: width that queries come out of; None: that of the stream", at_least=1
    )
    kv_lora_rank: int = key(512, "of latent attention: width that keys and values come out of", at_least=1)
    qk_nope_head_dim: int = key(128, "of latent attention: width of a head's queries that is not rotated", at_least=1)
    qk_rope_head_dim: int = key(64, "of latent attention: width of a head's queries that is rotated", at_least=1)
    v_head_dim: int = key(128, "of latent attention: width of a head's values", at_least=1)

    def query_and_value_width(self, config: Config) -> tuple[int, int]:
        """The widths of all heads together."""
        query = config.qk_nope_head_dim + config.qk_rope_head_dim
        return config.n_head * query, config.n_head * config.v_head_dim

    def weights(self, config: Config) -> list[Weights]:
        queries, values = self.query_and_value_width(config)
        of_latent, _ = biases(config)
        rank, latent = config.q_lora_rank, config.kv_lora_rank
        if rank is None:
            of_queries = matrices("q_proj", queries, config.n_embd)
        else:
            of_queries = [
                *matrices("q_a_proj", rank, config.n_embd, of_latent),
                *vectors("q_a_norm.weight", rank, part="norms"),
                *matrices("q_b_proj", queries, rank),
            ]
        return [
            *of_queries,
            *matrices("kv_a_proj", latent + config.qk_rope_head_dim, config.n_embd, of_latent),
            *vectors("kv_a_norm.weight", latent, part="norms"),
            *matrices("kv_b_proj", config.n_head * config.qk_nope_head_dim + values, latent),
            *matrices("o_proj", config.n_embd, values, of_latent, writes=True),
        ]

    def products(self, config: Config, length: int) -> list[Product]:
        scores = 2 * length * sum(self.query_and_value_width(config))
        return [Product("attention_scores", scores, masked=scores // 2)]

    def remembers(self, config: Config, length: int, with_current: bool) -> list[Remembered]:
        return [Remembered("latent_keys_and_values", length * (config.kv_lora_rank + config.qk_rope_head_dim))]

    def decoding_difference(self, config: Config, length: int) -> int:
        """It decodes on the latent vectors themselves, with the matrices that expand them multiplied into queries and
        outputs (section 2.1.2)."""
        expanded = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
        latent = 2 * config.kv_lora_rank + config.qk_rope_head_dim
        return 2 * length * config.n_head * (latent - expanded)

    def palm_scores(self, config: Config, length: int) -> int:
        """Q is the mean of the widths of a head's queries and values."""
        return 6 * length * sum(self.query_and_value_width(config))
