# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.4", "transformers>=4.45", "trl>=0.11", "datasets", "tokenizers"]
# ///
"""DPOTrainer or DPOConfig is given an option under a name that the installed trl does not have.

Two Llamas of one layer, policy and reference, stand for a preference-tuning script. A fix passes if the first step
starts from the DPO loss that the plain formula gives in float64, with the beta and the prompt length asked for.
"""

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainingArguments
from trl import DPOConfig, DPOTrainer

WORDS = ["<pad>", "<eos>", "<unk>", *(f"w{index}" for index in range(29))]
BETA = 0.5
"""Not the default, which is 0.1."""
LONG, SHORT = 12, 4
"""Words of a prompt, and how many of its last ones the script wants kept."""
POLICY, REFERENCE = 0, 1


@pytest.fixture(
    params=[
        pytest.param("beta", marks=pytest.mark.requires(trl=">=0.13")),
        pytest.param("tokenizer", marks=pytest.mark.requires(trl=">=0.16")),
        pytest.param("max-prompt-length", marks=pytest.mark.requires(trl=">=1.0")),
        pytest.param("processing-class-before-0-12", marks=pytest.mark.requires(trl="<0.12")),
    ]
)
def config(request):
    """The argument that the installed release refuses; `max-prompt-length` is refused by the configuration."""
    return request.param


def tokenizer():
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def model(seed=POLICY):
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    # Weights ten times the usual size, so that the two models disagree and beta can be seen in the loss.
    settings = LlamaConfig(vocab_size=len(WORDS), num_key_value_heads=2, initializer_range=0.2, **shape)
    return LlamaForCausalLM(settings)


def pairs():
    """Rows of prompt, chosen and rejected; the blank belongs to the completion."""

    def words(row, places, step):
        return " ".join(WORDS[3 + (row * step + place * (row + step)) % 29] for place in range(places))

    return [
        {"prompt": words(row, LONG, 1), "chosen": " " + words(row, 5, 2), "rejected": " " + words(row, 5, 3)}
        for row in range(8)
    ]


def shortened(rows, words=SHORT):
    """The same pairs with the last words of their prompts."""
    return [{**row, "prompt": " ".join(row["prompt"].split()[-words:])} for row in rows]


def settings(device, **others):
    """What every run has in common. One step over all rows, so that its loss does not depend on their order."""
    return {
        "output_dir": "runs",
        "max_steps": 1,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 8,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": device == "cpu",
        "bf16": False,
        "remove_unused_columns": False,
        **others,
    }


def dpo(args, rows=None, **others):
    data = Dataset.from_list(rows or pairs())
    return DPOTrainer(model=model(), ref_model=model(REFERENCE), args=args, train_dataset=data, **others)


def log_probability(network, prompt, completion):
    """Of the completion and its end, after the prompt, in float64."""
    start, rest = tokenizer()(prompt).input_ids, [*tokenizer()(completion).input_ids, tokenizer().eos_token_id]
    with torch.no_grad():
        logits = network.double()(input_ids=torch.tensor([start + rest])).logits[0]
    return logits[len(start) - 1 : -1].log_softmax(-1).gather(1, torch.tensor(rest)[:, None]).sum()


def float64_loss(rows, beta=BETA):
    policy, reference = model(), model(REFERENCE)
    losses = []
    for row in rows:
        chosen, rejected = (
            log_probability(policy, row["prompt"], row[kind]) - log_probability(reference, row["prompt"], row[kind])
            for kind in ("chosen", "rejected")
        )
        losses.append(-nn.functional.logsigmoid(beta * (chosen - rejected)))
    return torch.stack(losses).mean().item()


def check(measure, trainer, rows=None):
    """The step starts from the right loss and moves the policy alone."""
    before = {name: weight.detach().cpu().clone() for name, weight in trainer.model.named_parameters()}
    measure.compare(trainer.train().training_loss, float64_loss(rows or pairs()), tolerance=1e-4)
    after = dict(trainer.model.named_parameters())
    assert all(torch.isfinite(weight).all() for weight in after.values())
    assert any(not torch.equal(before[name], after[name].cpu()) for name in before)


def only_for(config, *names):
    if config not in names:
        pytest.skip(f"is about another argument than {config}")


@pytest.mark.reproduces
def test_reproduces(config, device, measure):
    try:
        if config == "max-prompt-length":
            DPOConfig(**settings(device), beta=BETA, max_prompt_length=SHORT)
        elif config == "beta":
            dpo(DPOConfig(**settings(device)), beta=BETA, processing_class=tokenizer())
        elif config == "tokenizer":
            dpo(DPOConfig(**settings(device), beta=BETA), tokenizer=tokenizer())
        else:
            dpo(DPOConfig(**settings(device), beta=BETA), processing_class=tokenizer())
    finally:
        measure.recovers(lambda: DPOConfig(**settings(device), beta=BETA))


@pytest.mark.workaround("move-to-config")
def test_move_to_config(config, device, measure):
    only_for(config, "beta", "tokenizer")
    args = DPOConfig(**settings(device), beta=BETA, loss_type="sigmoid", max_length=64)
    check(measure, dpo(args, processing_class=tokenizer()))


@pytest.mark.workaround("shorten-prompts")
def test_shorten_prompts(config, device, measure):
    only_for(config, "max-prompt-length")
    rows = shortened(pairs())
    check(measure, dpo(DPOConfig(**settings(device), beta=BETA), rows, processing_class=tokenizer()), rows)


@pytest.mark.workaround("old-names-for-old-trl")
def test_old_names_for_old_trl(config, device, measure):
    only_for(config, "processing-class-before-0-12")
    args = DPOConfig(**settings(device), beta=BETA, max_length=64, max_prompt_length=32)
    check(measure, dpo(args, tokenizer=tokenizer()))


@pytest.mark.dead_end("drop-the-argument")
def test_drop_the_argument(config, device, measure):
    """The loss is another one, or there is no tokenizer."""
    only_for(config, "beta", "tokenizer", "max-prompt-length")
    beta = {} if config == "beta" else {"beta": BETA}
    given = {} if config == "tokenizer" else {"processing_class": tokenizer()}
    wanted = shortened(pairs()) if config == "max-prompt-length" else pairs()
    check(measure, dpo(DPOConfig(**settings(device), **beta), **given), wanted)


@pytest.mark.dead_end("training-arguments")
def test_training_arguments(config, device):
    only_for(config, "beta", "tokenizer")
    dpo(TrainingArguments(**settings(device)), processing_class=tokenizer()).train()


@pytest.mark.dead_end("the-other-call")
def test_the_other_call(config, device):
    """What the trainer refuses is given to the configuration under the same name, or the other way round."""
    only_for(config, "tokenizer", "max-prompt-length")
    if config == "tokenizer":
        dpo(DPOConfig(**settings(device), tokenizer=tokenizer()))
    else:
        dpo(DPOConfig(**settings(device), beta=BETA), processing_class=tokenizer(), max_prompt_length=SHORT)


@pytest.mark.dead_end("max-length-instead")
def test_max_length_instead(config, device, measure):
    """It cuts at the end, where the completion is."""
    only_for(config, "max-prompt-length")
    args = DPOConfig(**settings(device), beta=BETA, max_length=LONG + 2)
    check(measure, dpo(args, processing_class=tokenizer()), shortened(pairs()))
