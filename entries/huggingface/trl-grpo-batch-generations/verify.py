# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.4", "transformers>=4.56", "trl>=0.24", "datasets", "tokenizers"]
# ///
"""The batch of a GRPO run does not hold whole groups of completions.

The check is made when GRPOConfig is built. A fix has to get through it and train: a Llama of one layer writes a few
tokens per prompt, and the advantages it trains with have to be the rewards compared within whole groups of one prompt.
"""

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

pytestmark = pytest.mark.requires(trl=">=0.24", transformers=">=4.56")

WORDS = ["<pad>", "<eos>", "<unk>", *(f"w{index}" for index in range(29))]

BROKEN = {
    "six-completions-groups-of-four": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "num_generations": 4,
    },
    "batch-of-four-default-groups": {"per_device_train_batch_size": 4},
    "evaluation-batch": {
        "per_device_train_batch_size": 6,
        "num_generations": 6,
        "eval_strategy": "steps",
        "eval_steps": 1,
    },
    "generation-batch-by-hand": {
        "per_device_train_batch_size": 4,
        "generation_batch_size": 6,
        "num_generations": 2,
    },
}


@pytest.fixture(params=list(BROKEN))
def config(request):
    """Which numbers do not fit. The evaluation batch is 8 by default."""
    return request.param


def tokenizer():
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def model():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = LlamaConfig(vocab_size=len(WORDS), num_key_value_heads=2, pad_token_id=0, eos_token_id=1, **shape)
    return LlamaForCausalLM(settings)


def settings(config, device, **changes):
    """The broken run's settings with some of them changed; None takes one out."""
    given = {
        "output_dir": "runs",
        "max_steps": 1,
        "learning_rate": 1e-3,
        "max_completion_length": 6,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": device == "cpu",
        "bf16": False,
        **BROKEN[config],
        **changes,
    }
    return {name: value for name, value in given.items() if value is not None}


def prompts():
    return Dataset.from_dict({"prompt": [f"w{row} w{row + 1} w{row + 2}" for row in range(24)]})


class WordValue:
    """A reward function that remembers what it was asked: the mean number of a completion's words."""

    __name__ = "word_value"

    def __init__(self):
        self.prompts, self.rewards = [], []

    def __call__(self, prompts, completions, **_):
        values = [[int(word[1:]) for word in text.split() if word[1:].isdigit()] or [0] for text in completions]
        rewards = [sum(row) / len(row) for row in values]
        self.prompts.append(prompts)
        self.rewards.append(rewards)
        return rewards


class Advantages(TrainerCallback):
    """Keeps what the first step was trained with."""

    def __init__(self):
        self.trainer, self.kept = None, None

    def on_step_end(self, *_, **__):
        self.kept = self.kept or list(self.trainer._logs["advantages"])


def check(measure, args):
    """One step: whole groups of one prompt each, advantages that compare their rewards, weights that move."""
    reward, advantages = WordValue(), Advantages()
    evaluated = prompts().select(range(8)) if args.eval_strategy != "no" else None
    network = model()
    before = [weight.detach().clone() for weight in network.parameters()]
    trainer = GRPOTrainer(
        model=network,
        reward_funcs=reward,
        args=args,
        train_dataset=prompts(),
        eval_dataset=evaluated,
        processing_class=tokenizer(),
        callbacks=[advantages],
    )
    advantages.trainer = trainer
    trainer.train()
    size = args.num_generations
    groups = [reward.prompts[0][start : start + size] for start in range(0, len(reward.prompts[0]), size)]
    assert len(reward.prompts[0]) == args.generation_batch_size
    assert all(len(group) == size and len(set(group)) == 1 for group in groups)
    rewards = torch.tensor(reward.rewards[0], dtype=torch.float64).reshape(-1, size)
    wanted = (rewards - rewards.mean(dim=1, keepdim=True)) / (rewards.std(dim=1, keepdim=True) + 1e-4)
    measure.compare(torch.tensor(advantages.kept), wanted.flatten(), tolerance=1e-3)
    if evaluated is not None:
        assert any("eval_reward" in line for line in trainer.state.log_history)
    assert all(torch.isfinite(weight).all() for weight in network.parameters())
    assert any(not torch.equal(old, new.cpu()) for old, new in zip(before, network.parameters(), strict=True))


def only_for(config, *names):
    if config not in names:
        pytest.skip(f"does not concern {config}")


FITTING = {
    "per_device_train_batch_size": 8,
    "num_generations": 8,
    "gradient_accumulation_steps": 1,
    "generation_batch_size": None,
}
TRAINING = ("six-completions-groups-of-four", "batch-of-four-default-groups")


@pytest.mark.reproduces
def test_reproduces(config, device, measure):
    try:
        GRPOConfig(**settings(config, device))
    finally:
        measure.recovers(lambda: GRPOConfig(**settings(config, device, **FITTING)))


@pytest.mark.workaround("multiple-of-generations")
def test_multiple_of_generations(config, device, measure):
    only_for(config, *TRAINING)
    check(measure, GRPOConfig(**settings(config, device, per_device_train_batch_size=8)))


@pytest.mark.workaround("fewer-generations")
def test_fewer_generations(config, device, measure):
    only_for(config, *TRAINING)
    check(measure, GRPOConfig(**settings(config, device, num_generations=2)))


@pytest.mark.workaround("accumulate")
def test_accumulate(config, device, measure):
    only_for(config, *TRAINING)
    check(measure, GRPOConfig(**settings(config, device, gradient_accumulation_steps=4)))


@pytest.mark.workaround("generation-batch-size")
def test_generation_batch_size(config, device, measure):
    only_for(config, *TRAINING)
    check(measure, GRPOConfig(**settings(config, device, generation_batch_size=8)))


@pytest.mark.workaround("eval-batch-size")
def test_eval_batch_size(config, device, measure):
    only_for(config, "evaluation-batch")
    check(measure, GRPOConfig(**settings(config, device, per_device_eval_batch_size=6)))


@pytest.mark.workaround("fewer-generations-for-evaluation")
@pytest.mark.requires(trl=">=0.26")
def test_fewer_generations_for_evaluation(config, device, measure):
    only_for(config, "evaluation-batch")
    check(measure, GRPOConfig(**settings(config, device, num_generations_eval=2)))


@pytest.mark.workaround("let-it-be-computed")
def test_let_it_be_computed(config, device, measure):
    only_for(config, "generation-batch-by-hand")
    check(measure, GRPOConfig(**settings(config, device, generation_batch_size=None)))


@pytest.mark.dead_end("one-generation")
def test_one_generation(config, device):
    only_for(config, *TRAINING)
    GRPOConfig(**settings(config, device, num_generations=1))


@pytest.mark.dead_end("auto-batch-size")
def test_auto_batch_size(config, device):
    only_for(config, *TRAINING)
    GRPOConfig(**settings(config, device, auto_find_batch_size=True))


@pytest.mark.dead_end("drop-last")
def test_drop_last(config, device):
    GRPOConfig(**settings(config, device, dataloader_drop_last=True))


@pytest.mark.dead_end("larger-accumulation")
def test_larger_accumulation(config, device):
    only_for(config, "evaluation-batch", "generation-batch-by-hand")
    GRPOConfig(**settings(config, device, gradient_accumulation_steps=4))
