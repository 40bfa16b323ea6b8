# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.4", "transformers>=4.48,<5", "trl>=0.15,<0.29", "datasets", "tokenizers"]
# ///
"""Code for the PPO of trl 0.11 meets a trl in which those names belong to another trainer.

Llamas of one layer stand for policy, reward and value model. A fix has to train the policy on the rewards it was given.
Needs a release that has the new PPO at its top level, trl 0.12 to 0.28; the arms were written for 0.15.
"""

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl import AutoModelForCausalLMWithValueHead, GRPOConfig, GRPOTrainer, PPOConfig, PPOTrainer

pytestmark = pytest.mark.requires(trl=">=0.15,<0.29", transformers=">=4.48,<5")

WORDS = ["<pad>", "<eos>", "<unk>", *(f"w{index}" for index in range(29))]
KL_COEF = 0.2
"""Not the default, which is 0.05."""


@pytest.fixture(params=["old-config", "old-trainer-call", "renamed-field"])
def config(request):
    """Where code of another release fails first."""
    return request.param


def tokenizer():
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def build(kind, seed=0, **others):
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return kind(
        LlamaConfig(vocab_size=len(WORDS), num_key_value_heads=2, pad_token_id=0, eos_token_id=1, **shape, **others)
    )


def policy():
    return build(LlamaForCausalLM)


def scorer(seed):
    """A reward or value model: one number for each text."""
    return build(LlamaForSequenceClassification, seed, num_labels=1)


def settings(device, **others):
    return {
        "output_dir": "runs",
        "learning_rate": 1e-2,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": device == "cpu",
        "bf16": False,
        **others,
    }


def new_settings(device):
    """Two updates of four episodes each."""
    return settings(
        device,
        per_device_train_batch_size=4,
        num_mini_batches=1,
        total_episodes=8,
        response_length=4,
        num_sample_generations=0,
        num_ppo_epochs=2,
        kl_coef=KL_COEF,
    )


def encoded():
    return Dataset.from_dict({"input_ids": [[3 + row, 4 + row, 5 + row] for row in range(16)]})


def moved(before, model):
    assert all(torch.isfinite(weight).all() for weight in model.parameters())
    return any(not torch.equal(old, new.detach().cpu()) for old, new in zip(before, model.parameters(), strict=True))


def weights(model):
    return [weight.detach().clone() for weight in model.parameters()]


def train_anew(device, measure):
    """The new trainer: policy and value model move, the other two do not, and the penalty is KL times its factor."""
    trained, value, reward, reference = policy(), scorer(2), scorer(1), policy()
    before = [weights(model) for model in (trained, value, reward, reference)]
    trainer = PPOTrainer(
        args=PPOConfig(**new_settings(device)),
        processing_class=tokenizer(),
        model=trained,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=encoded(),
        eval_dataset=encoded(),
    )
    trainer.train()
    changed = [moved(*pair) for pair in zip(before, (trained, value, reward, reference), strict=True)]
    assert changed == [True, True, False, False]
    first, second = trainer.state.log_history
    assert first["objective/kl"] == 0.0
    penalty = -KL_COEF * second["objective/kl"]
    total = second["objective/scores"] + penalty
    logged = [second["objective/non_score_reward"], second["objective/rlhf_reward"]]
    measure.compare(logged, [penalty, total], tolerance=1e-4)


def only_old_code(config):
    if config == "renamed-field":
        pytest.skip("this code is written for the new trainer and needs one new name")


@pytest.mark.reproduces
def test_reproduces(config, device, measure):
    try:
        if config == "old-config":
            PPOConfig(model_name="gpt2", init_kl_coef=KL_COEF, ppo_epochs=2, log_with="wandb")
        elif config == "renamed-field":
            PPOConfig(**settings(device), ppo_epochs=2)
        else:
            PPOTrainer(config=PPOConfig(**settings(device)), model=policy(), ref_model=policy(), tokenizer=tokenizer())
    finally:
        measure.recovers(lambda: PPOConfig(**new_settings(device)))


@pytest.mark.workaround("rewrite")
def test_rewrite(config, device, measure):
    only_old_code(config)
    train_anew(device, measure)


@pytest.mark.workaround("rename-fields")
def test_rename_fields(config, device, measure):
    if config != "renamed-field":
        pytest.skip("new names are not enough for code of the old trainer: that is a dead end")
    train_anew(device, measure)


@pytest.mark.workaround("grpo")
def test_grpo(config, device, measure):
    only_old_code(config)
    given = []

    def word_value(completions, **_):
        given.append([float(sum(int(word[1:]) for word in text.split() if word[1:].isdigit())) for text in completions])
        return given[-1]

    trained = policy()
    before = weights(trained)
    args = GRPOConfig(
        **settings(device, max_steps=1, logging_steps=1),
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=4,
    )
    data = Dataset.from_dict({"prompt": [f"w{row} w{row + 1}" for row in range(16)]})
    trainer = GRPOTrainer(trained, reward_funcs=word_value, args=args, train_dataset=data, processing_class=tokenizer())
    trainer.train()
    logged = next(line["reward"] for line in trainer.state.log_history if "reward" in line)
    measure.compare(logged, sum(given[0]) / len(given[0]), tolerance=1e-4)
    assert moved(before, trained)


@pytest.mark.dead_end("rename-fields-only")
def test_rename_fields_only(config, device):
    """The configuration can be repaired by new names; the old trainer's call and its step cannot."""
    only_old_code(config)
    args = PPOConfig(**settings(device), num_ppo_epochs=2, kl_coef=KL_COEF)
    PPOTrainer(config=args, model=policy(), ref_model=policy(), tokenizer=tokenizer())


@pytest.mark.dead_end("positional-arguments")
def test_positional_arguments(config, device):
    only_old_code(config)
    PPOTrainer(PPOConfig(**settings(device)), policy(), policy(), tokenizer())


@pytest.mark.dead_end("keep-the-step-loop")
def test_keep_the_step_loop(config, device):
    only_old_code(config)
    trainer = PPOTrainer(
        args=PPOConfig(**new_settings(device)),
        processing_class=tokenizer(),
        model=policy(),
        ref_model=policy(),
        reward_model=scorer(1),
        value_model=scorer(2),
        train_dataset=encoded(),
        eval_dataset=encoded(),
    )
    queries, responses = torch.tensor([[3, 4, 5]]), torch.tensor([[6, 7]])
    trainer.step(list(queries), list(responses), [torch.tensor(1.0)])


@pytest.mark.dead_end("value-head-model")
def test_value_head_model(config, device):
    only_old_code(config)
    PPOTrainer(
        args=PPOConfig(**new_settings(device)),
        processing_class=tokenizer(),
        model=AutoModelForCausalLMWithValueHead(policy()),
        ref_model=policy(),
        reward_model=scorer(1),
        value_model=scorer(2),
        train_dataset=encoded(),
        eval_dataset=encoded(),
    ).train()


@pytest.mark.dead_end("reward-function")
def test_reward_function(config, device):
    PPOTrainer(
        args=PPOConfig(**new_settings(device)),
        processing_class=tokenizer(),
        model=policy(),
        ref_model=policy(),
        reward_model=lambda texts: torch.ones(len(texts)),
        value_model=scorer(2),
        train_dataset=encoded(),
        eval_dataset=encoded(),
    ).train()
