"""What pages say besides the entries themselves, in the languages that entries are shown in."""

from __future__ import annotations

from collections.abc import Mapping

_EN = {
    "title": "provenfix", "tagline": "Fixes for CUDA, PyTorch and Hugging Face errors, proven by running them.",
    "paste": "Paste a traceback or a log", "paste_hint": "The whole text, from the first line to the last. It is matched in memory and not kept.",
    "match": "Explain it", "search": "Search", "search_hint": "words of the error", "browse": "Browse", "home": "Paste",
    "language": "中文", "other": "zh", "why": "Why it happens", "fixes": "Fixes, best first",
    "dead_ends": "What does not help", "causes": "Causes", "recover": "After the error", "also": "Also in this text",
    "unknown": "No entry knows this error", "understood": "Understood", "raised_by": "Raised by", "your_code": "Your code",
    "related": "Sound alike, but are not an answer", "contribute": "Add it: an entry is one folder, see CONTRIBUTING.md.",
    "broken": "The broken code, as it was run", "fixed": "The fixed code, as it was run", "failing": "The failing attempt, as it was run",
    "evidence": "Evidence", "script": "Verification script", "sources": "Sources", "graph": "What comes before and after",
    "domain": "Domain", "tier": "Proof", "all": "all", "nothing": "No entry fits.", "entries": "entries", "filter": "Show",
    "trade_off": "But", "condition": "When", "for_cause": "For", "measured": "worked in", "failed": "failed in",
    "detect": "How to see it coming", "prevent": "How to keep it away", "aliases": "Also known as", "signature": "Message",
    "wrapper": "This only reports that something else failed. What began it is in no entry:", "before": "before", "after": "after",
    "confused": "mistaken for it", "run": "Run", "device": "Device", "versions": "Versions", "trials": "Trials", "file": "File",
    "fresh": "of today's script", "skip": "Skip to the content", "in_context": "Line", "reproduced": "Raised in",
    "nothing_pasted": "There was nothing in the box.", "results": "Results for",
    "paste_local": "The matcher runs inside this page: nothing you paste leaves your machine. The first time it loads about 14 MB.",
    "loading": "Loading the matcher …", "loaded": "The matcher is ready.", "trouble": "That did not work:",
    "matrix": "Evidence by machine", "matrix_hint": "Trials that bore their claim out, of all trials of today's scripts, by GPU (or CPU) and torch release.",
    "graph_hint": "An arrow leads from an error to what is met next, after the first was fixed or because of it.",
}  # fmt: skip
_ZH = {
    "title": "provenfix", "tagline": "CUDA、PyTorch 与 Hugging Face 报错的修复方案，每一条都实际运行验证过。",
    "paste": "粘贴报错堆栈或日志", "paste_hint": "请粘贴全文，从第一行到最后一行。只在内存中匹配，不会保存。",
    "match": "解释报错", "search": "搜索", "search_hint": "报错中的词", "browse": "浏览", "home": "粘贴",
    "language": "English", "other": "en", "why": "为什么会出现", "fixes": "修复方案（最优在前）",
    "dead_ends": "无效的做法", "causes": "成因", "recover": "报错之后", "also": "文本中还有",
    "unknown": "没有条目认识这个报错", "understood": "已识别", "raised_by": "抛出者", "your_code": "你的代码",
    "related": "看起来相近，但不是答案", "contribute": "欢迎补充：一个条目就是一个文件夹，见 CONTRIBUTING.md。",
    "broken": "出错的代码（实际运行的版本）", "fixed": "修复后的代码（实际运行的版本）", "failing": "仍然失败的尝试（实际运行的版本）",
    "evidence": "证据", "script": "验证脚本", "sources": "来源", "graph": "之前与之后", "domain": "领域", "tier": "验证程度",
    "all": "全部", "nothing": "没有符合的条目。", "entries": "个条目", "filter": "显示", "trade_off": "代价", "condition": "适用条件", "for_cause": "针对",
    "measured": "有效", "failed": "失败", "detect": "如何提前发现", "prevent": "如何避免",
    "aliases": "别名", "signature": "报错信息", "wrapper": "它只说明另有别处失败，真正的起因不在任何条目中：", "before": "之前",
    "after": "之后", "confused": "易混淆", "run": "运行", "device": "设备", "versions": "版本", "trials": "试验", "file": "文件",
    "fresh": "对应当前脚本", "skip": "跳到正文", "in_context": "行", "reproduced": "复现",
    "nothing_pasted": "输入框是空的。", "results": "搜索结果：",
    "paste_local": "匹配程序就在本页面内运行，粘贴的内容不会离开你的电脑。首次使用需加载约 14 MB。",
    "loading": "正在加载匹配程序……", "loaded": "匹配程序已就绪。", "trouble": "未能完成：",
    "matrix": "各机器上的证据", "matrix_hint": "当前脚本的试验中，按 GPU（或 CPU）与 torch 版本统计：符合预期的次数 / 总次数。",
    "graph_hint": "箭头从一个报错指向接下来会遇到的报错：修好前者之后，或由前者引起。",
}  # fmt: skip
RECOVER_ZH = {
    "in_process": "同一进程可以继续运行", "restart_process": "需要重启进程，CUDA 上下文可能已不可用",
    "reset_gpu": "需要重置 GPU（nvidia-smi --gpu-reset）或节点", "reboot": "需要重启节点",
    "replace_hardware": "需要更换硬件", "unknown": "尚不清楚",
}  # fmt: skip
TIERS_ZH = {
    "verified_cuda": "已在 CUDA 上验证", "verified_cpu": "已在 CPU 上验证", "reproduced": "已复现，修复未验证",
    "sourced": "有来源，未验证", "ai_generated": "未经核实的说法", "unverifiable": "暂时无法验证", "stale": "验证已过期", "refuted": "已被推翻",
}  # fmt: skip


def page_words(locale: str) -> Mapping[str, str]:
    """Words of pages in `locale`, English if there are none."""
    return _ZH if locale == "zh" else _EN
