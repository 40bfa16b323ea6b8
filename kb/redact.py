"""Removes secrets, and on request home folders, from text before it is stored or sent.

Linear in the text: every pattern starts at a literal or at the start of a word, so no stretch is scanned again and
again. Standard library only.
"""

from __future__ import annotations

import re

from kb import lazy

MARK = "[redacted]"

_KEY_BLOCK = lazy.pattern(
    r"(-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----)[\s\S]*?(-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)", re.ASCII
)

_TOKEN = lazy.pattern(
    r"(?<![A-Za-z0-9_-])(?:"
    r"hf_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|sk-[A-Za-z0-9_-]{16,}"  # OpenAI, Anthropic
    r"|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_[A-Za-z0-9_]{16,}"
    r"|glpat-[A-Za-z0-9_-]{16,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"  # AWS
    r"|AIza[A-Za-z0-9_-]{30,}"  # Google
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-[A-Za-z0-9-]{10,}"  # Slack
    r"|nvapi-[A-Za-z0-9_-]{20,}"  # NVIDIA
    r"|npm_[A-Za-z0-9]{30,}|pypi-Ag[A-Za-z0-9_-]{30,}"  # package registries
    r"|(?:sk|rk)_live_[A-Za-z0-9]{16,}|SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"  # Stripe, SendGrid
    r"|gsk_[A-Za-z0-9]{20,}|r8_[A-Za-z0-9]{30,}"  # Groq, Replicate
    r"|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}"  # JSON web token
    r")",
    re.ASCII,
)

_WEBHOOK = lazy.pattern(r"(hooks\.slack\.com/(?:services|workflows)/)[A-Za-z0-9/_-]{8,}", re.ASCII)
_BOT = lazy.pattern(  # Telegram, Discord
    r"(?<![A-Za-z0-9_-])(?:[0-9]{8,10}:AA[A-Za-z0-9_-]{33}|[MNO][A-Za-z0-9_-]{23,25}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,})",
    re.ASCII,
)
_ACCOUNT = lazy.pattern(r"(AccountKey=)[A-Za-z0-9+/]{40,}={0,2}", re.ASCII)  # Azure
_HEADER = lazy.pattern(
    r"(?i)\b((?:proxy-)?authorization|x-api-key|x-auth-token|set-cookie|cookie)"
    r"([\"']?[ \t]{0,4}[:=][ \t]{0,4}[\"']?)(?:(?:bearer|basic|token|digest)[ \t]{1,4})?[^\s\"',]+",
    re.ASCII,
)
_BEARER = lazy.pattern(r"(?i)\b(bearer[ \t]{1,4})[A-Za-z0-9._~+/=-]{16,}", re.ASCII)

_URL_CREDENTIALS = lazy.pattern(r"(://)[^\s/@:\"'<>]{0,200}:[^\s/@\"'<>]{1,500}@", re.ASCII)

# Environment style, `HF_TOKEN=...` or `"HF_TOKEN": "..."`: capitals, so that `past_key_values=...` stays readable.
_ASSIGNED = lazy.pattern(
    r"(?<![A-Za-z0-9_])([A-Z0-9_]*?(?:API_?KEY|ACCESS_KEY|ACCESS_KEY_ID|SECRET_KEY|PRIVATE_KEY|_KEY|TOKEN|SECRET|"
    r"PASSWORD|PASSWD|CREDENTIALS?|PASSPHRASE)[\"']?[ \t]{0,4}[=:][ \t]{0,4})"
    r"(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s\"',;&)]+)",
    re.ASCII,
)
_NAMED = (
    r"(?:api[_-]?key|access[_-]?key(?:[_-]id)?|secret[_-]?key|(?:aws[_-])?secret[_-]access[_-]key|private[_-]key"
    r"|password|passwd|passphrase|client[_-]secret|secret|(?:access|auth|refresh|bearer|hf|api)[_-]?token|token)"
)
# Lower case is code more often than a secret: only a quoted text, or a long value with a digit in it, is taken out.
_NAMED_QUOTED = lazy.pattern(
    rf"(?i)(?<![A-Za-z0-9_])({_NAMED}[\"']?[ \t]{{0,4}}[=:][ \t]{{0,4}})(?:\"[^\"\s]+\"|'[^'\s]+')", re.ASCII
)
_NAMED_BARE = lazy.pattern(
    rf"(?i)(?<![A-Za-z0-9_])({_NAMED}=)(?=[^\s\"',;&()\[\]]{{8}})(?=[^\s\"',;&()\[\]0-9]{{0,64}}[0-9])"
    r"[^\s\"',;&()\[\]]+",
    re.ASCII,
)
_OPTION = lazy.pattern(rf"(?i)(?<!\S)(--{_NAMED}[= ])(?!-)[^\s]+", re.ASCII)

# A top-level domain is spelled out so that `q@k.transpose(1, 2)` and `x@w.mT` are not addresses.
_EMAIL = lazy.pattern(
    r"(?<![A-Za-z0-9._%+-])(?!git@)[A-Za-z0-9._%+-]+@(?:[A-Za-z0-9-]{1,63}\.){1,6}"
    r"(?:com|org|net|edu|gov|mil|int|info|dev|app|cloud|tech|xyz|email|[a-z]{2})(?![A-Za-z0-9_(\[-])",
    re.ASCII,
)

_HOME = lazy.pattern(
    r"(?<![A-Za-z0-9_.~-])(?:(?:/home/|/Users/)[^/\s\"':;,<>|()]+|/root(?![A-Za-z0-9_.-]))"
    r"|(?<![A-Za-z0-9_])[A-Za-z]:(?:\\{1,2}|/)Users(?:\\{1,2}|/)"
    r"(?:[^\\/\r\n\"':<>|]{1,64}(?=[\\/])|[^\\/\s\"':;,<>|]+)",
    re.ASCII,
)

_SECRETS: tuple[tuple[re.Pattern[str], str, tuple[str, ...]], ...] = (
    (_KEY_BLOCK, rf"\1{MARK}\2", ("private key",)),
    (_URL_CREDENTIALS, rf"\1{MARK}@", ("://",)),
    (_WEBHOOK, rf"\1{MARK}", ("hooks.slack.com",)),
    (_BOT, MARK, (":aa", ".")),
    (_ACCOUNT, rf"\1{MARK}", ("accountkey=",)),
    (_HEADER, rf"\1\2{MARK}", ("authorization", "x-api-key", "x-auth-token", "cookie")),
    (
        _TOKEN,
        MARK,
        (
            "hf_",
            "sk-",
            "gh",
            "github_",
            "glpat-",
            "akia",
            "asia",
            "aiza",
            "xox",
            "xapp-",
            "nvapi-",
            "npm_",
            "pypi-",
            "_live_",
            "sg.",
            "gsk_",
            "r8_",
            "eyj",
        ),
    ),
    (_BEARER, rf"\1{MARK}", ("bearer",)),
    (_ASSIGNED, rf"\1{MARK}", ("key", "token", "secret", "passw", "credential", "passphrase")),
    (_NAMED_QUOTED, rf"\1{MARK}", ("key", "token", "secret", "passw", "passphrase")),
    (_NAMED_BARE, rf"\1{MARK}", ("key", "token", "secret", "passw", "passphrase")),
    (_OPTION, rf"\1{MARK}", ("--",)),
    (_EMAIL, MARK, ("@",)),
)
"""Pattern, what stands in its place, and texts of which one stands, in lower case, in everything it finds: most texts
hold none, and need no pattern compiled."""


def redact(text: str, paths: bool = False) -> str:
    """The text without tokens, keys, passwords, credentials in addresses, and e-mail addresses.

    `paths` also replaces home folders by `~`. Redacting twice changes nothing more.
    """
    # Taking one secret out can bring another to light, so it is repeated until nothing changes; twice is the rule.
    for _ in range(8):
        before = text
        lowered = text.lower()
        for pattern, replacement, gate in _SECRETS:
            if any(literal in lowered for literal in gate):
                text = pattern.sub(replacement, text)
        if paths:
            text = _HOME.sub("~", text)
        if text == before:
            break
    return text
