"""The fixed words of rendered answers, in the languages entries are shown in."""

from __future__ import annotations

from collections.abc import Mapping

_EN = {
    "why": "Why", "first": "Do first", "then": "Then", "avoid": "Do not", "recover": "Recover", "proof": "Proof",
    "seen": "Seen", "also": "Also", "more": "More", "instead": "See rather", "causes": "Causes", "unknown": "unknown: no entry matches this paste",
    "understood": "Understood", "raised_by": "Raised by", "your_code": "Your code", "related": "Related",
    "contribute": "Next", "tell": "tell by", "for_cause": "for", "when": "when", "but": "but", "nothing": "no exception or known error line was found in it", "fixes": "Fixes",
    "detect": "Detect", "prevent": "Prevent", "sources": "Sources", "reported": "Reported", "versions": "Versions",
    "confused": "Not to be", "leads": "Leads to", "preceded": "Comes after", "aliases": "Also known", "how": "How",
    "wrapper": "this only reports that something else failed", "only_wrapper": "The failure behind it is not in the catalogue",
}  # fmt: skip
_ZH = {
    "why": "原因", "first": "先做", "then": "其次", "avoid": "不要", "recover": "恢复", "proof": "证据", "seen": "位置",
    "also": "另有", "more": "更多", "instead": "另请参阅", "causes": "成因", "unknown": "未知：没有条目与此内容匹配", "understood": "已识别",
    "raised_by": "抛出者", "your_code": "你的代码", "related": "相近", "contribute": "下一步", "tell": "判断", "for_cause": "针对", "when": "适用", "but": "代价",
    "nothing": "其中没有异常，也没有已知的错误行", "fixes": "修复", "detect": "检测", "prevent": "预防", "sources": "来源",
    "reported": "他人声称", "versions": "版本", "confused": "勿混淆", "leads": "之后可能", "preceded": "之前可能",
    "aliases": "别名", "how": "做法", "wrapper": "它只说明另有别处失败", "only_wrapper": "其背后的失败不在目录中",
}  # fmt: skip

RECOVER = {
    "in_process": "the same process can go on",
    "restart_process": "restart the process; its CUDA context may be unusable",
    "reset_gpu": "reset the GPU (nvidia-smi --gpu-reset) or the node",
    "reboot": "reboot the node",
    "replace_hardware": "replace the hardware",
    "unknown": "not known",
}
TIERS = {
    "verified_cuda": ("✔", "proven on CUDA", "green"),
    "verified_cpu": ("✔", "proven on CPU", "green"),
    "reproduced": ("◐", "reproduced, fixes unproven", "yellow"),
    "sourced": ("○", "from sources, unproven", "yellow"),
    "ai_generated": ("○", "claims nobody checked", "yellow"),
    "unverifiable": ("△", "not verifiable yet", "magenta"),
    "stale": ("◌", "proof out of date", "yellow"),
    "refuted": ("✗", "refuted", "red"),
}
STATES = {
    "measured": ("✔", "green"),
    "unmeasured": ("○", "yellow"),
    "stale": ("◌", "yellow"),
    "refuted": ("✗", "red"),
    "unverifiable": ("△", "magenta"),
    "nothing_to_fix": ("–", "dim"),
}


def words(locale: str) -> Mapping[str, str]:
    """Headings in `locale`, English if there are none."""
    return _ZH if locale == "zh" else _EN
