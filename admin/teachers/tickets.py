"""Support tickets to triage, and the truth about each: what the simulated teacher answers and the demo sends.

`draw` writes tickets from phrases that are combined freely; `label` reads any text by the rules that `SYSTEM` states.
The two share the field values and the misspellings, not the phrases: that they agree is a test.
"""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SYSTEM = """\
You triage support tickets for an online electronics shop. Answer with one JSON object and nothing else: these five \
fields, in this order.
category: returns (send back, swap, refund), billing (charge, invoice, payment), delivery (parcel, courier, \
shipping), account (login, password, profile) or technical (faults, and anything else). If two fit, take the first.
product: laptop (notebook), phone (handset), headphones (earbuds), camera (DSLR), printer (inkjet), \
watch (fitness band) or other. The first one named.
priority: low if the customer says it can wait, high if it is urgent or has a deadline, normal if neither is said.
sentiment: angry if the customer scolds us, happy if they praise us, otherwise neutral. Greetings and thanks are neutral.
order: the order number, a letter, a dash and four digits, or null if the ticket has none.
Example: {"category":"billing","product":"phone","priority":"high","sentiment":"neutral","order":"A-4821"}"""

#: Allowed values of the four enum fields; `order` is free. The order of `category` is the precedence that SYSTEM states.
FIELDS: dict[str, tuple[str, ...]] = {
    "category": ("returns", "billing", "delivery", "account", "technical"),
    "product": ("laptop", "phone", "headphones", "camera", "printer", "watch", "other"),
    "priority": ("low", "normal", "high"),
    "sentiment": ("neutral", "angry", "happy"),
}


@dataclass(frozen=True)
class Ticket:
    text: str  #: 9 to 45 tokens of English
    answer: dict[str, str | None]  #: the five fields, in SYSTEM's order


def draw(seed: int, n: int) -> list[Ticket]:
    """`n` tickets with distinct texts. The same seed gives the same tickets; a smaller `n` gives the first of them."""
    rng = random.Random(seed)
    tickets: dict[str, Ticket] = {}
    while len(tickets) < n:
        ticket = _write(rng)
        if _length(ticket.text) <= _LONGEST:
            tickets.setdefault(ticket.text, ticket)
    return list(tickets.values())


def request(ticket: Ticket, *, model: str = "gpt-sim", stream: bool = False) -> dict[str, Any]:
    """The chat.completions body that asks for a ticket's triage."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": ticket.text}]
    body: dict[str, Any] = {"model": model, "messages": messages, "response_format": {"type": "json_object"}}
    return {**body, "stream": True} if stream else body


def render(answer: dict[str, str | None]) -> str:
    """An answer as the compact JSON text that the teacher says."""
    return json.dumps(answer, separators=(",", ":"))


def label(text: str) -> dict[str, str | None]:
    """The five fields of any text, by SYSTEM's rules."""
    plain = _MISSPELT.sub(lambda found: _SPELLING[found[0]], text.lower().replace("’", "'"))
    found = _ORDER.search(plain)
    products = {match.start(): name for name, cue in _PRODUCT_CUES.items() if (match := cue.search(plain))}
    return {
        "category": _first(_CATEGORY_CUES, plain) or "technical",
        "product": products[min(products)] if products else "other",
        "priority": _first(_PRIORITY_CUES, plain) or "normal",
        "sentiment": _first(_SENTIMENT_CUES, plain) or "neutral",
        "order": found[0].upper() if found else None,
    }


# What `label` reads: the first value whose cue occurs.

_CATEGORY_CUES = {
    "returns": re.compile(r"\b(return(s|ed|ing)?|refund\w*|money back|exchange|swap|sen[dt] (\S+ ){0,5}back)\b"),
    "billing": re.compile(r"\b((over)?charged|charge (of|on|for)|bill(s|ed|ing)?|invoices?|payments?|paid|receipt|from my card)\b"),
    "delivery": re.compile(r"\b(arriv\w+|tracking|parcel|package|courier|deliver\w*|ship(ped|ping|ment)?)\b"),
    "account": re.compile(r"\b(log ?in|logged|sign(ed)? (me )?(in|out)|password|profile|account|user ?name)\b"),
}
_PRODUCT_CUES = {
    "laptop": re.compile(r"\b(laptop|notebook|ultrabook)\b"),
    "phone": re.compile(r"\b((smart)?phone|handset)\b"),
    "headphones": re.compile(r"\b(headphones?|headset|earbuds?)\b"),
    "camera": re.compile(r"\b(camera|dslr)\b"),
    "printer": re.compile(r"\b(printer|inkjet)\b"),
    "watch": re.compile(r"\b((smart)?watch|fitness band)\b"),
}
_PRIORITY_CUES = {
    "low": re.compile(r"\b(no rush|no hurry|not urgent|take your time|whenever|can wait|no need to hurry|when you can)\b"),
    "high": re.compile(
        r"\b(urgent(ly)?|need (\S+ ){1,4}(today|tonight|tomorrow)|as soon as possible|asap|right away|immediately"
        r"|can't wait|cannot wait|emergency|hurry|running out|deadline)\b"
    ),
}
_SENTIMENT_CUES = {
    "angry": re.compile(
        r"\b(angry|furious|fed up|sick of|unacceptable|ridiculous|outrageous|disgrace\w*|joke|shame|terrible|awful|worst)\b"
    ),
    "happy": re.compile(
        r"\b(love|great|wonderful|fantastic|amazing|brilliant|you are the best|happy|pleased|delighted|good work"
        r"|so (kind|helpful))\b"
    ),
}
_ORDER = re.compile(r"\b[a-z]-\d{4}\b")


def _first(cues: dict[str, re.Pattern[str]], text: str) -> str | None:
    return next((value for value, cue in cues.items() if cue.search(text)), None)


# What `draw` writes: {a|b} is one of them, @ the product, $ an amount.

_NAMES = {
    "laptop": ("laptop", "laptop", "notebook"),
    "phone": ("phone", "phone", "handset"),
    "headphones": ("headphones", "headphones", "earbuds"),
    "camera": ("camera", "camera", "DSLR"),
    "printer": ("printer", "printer", "inkjet"),
    "watch": ("watch", "watch", "fitness band"),
    "other": ("keyboard", "speaker", "router", "monitor", "tablet"),
}
_ISSUES = {
    "returns": (
        "I {want|would like} to {return|send back} {my|the|this} @",
        "please refund {my|the} @{| I bought for $}",
        "I would like {my money back|a refund} for the @",
        "can I {exchange|swap} {my|the} @ for {a newer|another|a different} one",
        "{please send|where is} the return label for {my|the|this} @",
    ),
    "billing": (
        "I was charged {twice|two times|double} for {my|the|this} @",
        "{you|your shop} billed me $ {twice|by mistake|too much} for the @",
        "the invoice for {my|the} @ {is wrong|shows $ too much|has the wrong amount}",
        "please send {a copy of the|an} invoice for {my|the} @",
        "my payment {of $ |}for the @ {failed|was declined|did not go through}",
    ),
    "delivery": (
        "my @ {has not arrived|never arrived|has still not arrived}",
        "where is my @? The tracking has not {moved|changed} {since Monday|for a week|for days}",
        "the {parcel|package} with my @ is {late|lost|a week late}",
        "the courier {left my @ at the wrong house|lost my @|never came with my @}",
        "please {deliver|ship} my @ to {another|a new|my work} address",
    ),
    "account": (
        "I {cannot|can't} log in to {my|the} @ account",
        "I forgot {my|the} password for the @ {app|account|page}",
        "the password reset {mail|link} for my @ {never came|has expired|is missing}",
        "please change the email {address |}on my @ {account|profile}",
        "my @ {account|profile} is {locked|blocked}",
    ),
    "technical": (
        "{my|the} @ {will not|won't} turn on{| since Monday| any more}",
        "{my|the} @ stopped working {yesterday|after a week|after the update}",
        "{my|the} @ {froze|crashed} {again|twice|during the update|all week}",
        "the {power|left|main} button {of|on} my @ is {stuck|broken|loose}",
        "I {get|see} {an error|error 52|a strange error} on {my|the} @",
    ),
}
_PRIORITIES = {
    "low": (
        "there is {really |}no {rush|hurry}",
        "{please |}take your time{| with this}",
        "{this|it} can wait{| a few days| until next week}",
    ),
    "normal": ("",),
    "high": (
        "{this|it} is {urgent|very urgent|quite urgent|an emergency}",
        "please {fix|solve|answer} this {as soon as possible|right away|immediately}",
        "{this|it} is urgent, {the|my} deadline is {today|tonight|tomorrow}",
    ),
}
_SENTIMENTS = {
    "neutral": ("",),
    "angry": (
        "this is {unacceptable|ridiculous|outrageous}",
        "I am {furious|very angry|really angry}",
        "{this is |}the worst {service|shop} ever",
        "your {service|support} is {terrible|awful}",
    ),
    "happy": (
        "I {love|really love} {your shop|your service|buying here}",
        "great {service|shop|support}{| so far| as always}",
        "you are {wonderful|fantastic|the best}",
        "your {team|support} is {amazing|brilliant|wonderful}",
    ),
}
_INLINE_ORDERS = (" (order #)", ", order #", ", order number #", " (#)", ", ref #")
_ORDERS = ("{my|the} order number is #", "order {no.|number|ref} #", "the order is #", "it is order #")
_NO_ORDER = ("I {lost|cannot find} the order number", "I have no order number")
#: Facts that change no field, for tickets that would be too short.
_ASIDES = (
    "I bought it {in May|last month|in March|a year ago|from your {Leeds|Oslo|Dublin|Lisbon} shop}",
    "I have been a customer {since {2019|2021|2023}|for {two|three|five} years}",
    "I am writing from {Leeds|Oslo|Dublin|Lisbon|Vienna|Turin|my office|my new flat}",
    "I {already|also} {asked|wrote to} you {last week|on Tuesday|in the chat}",
    "it was {a gift|a present} for my {sister|brother|mother|son|daughter|boss}",
    "{my wife|my husband|my son|a friend} {uses|needs} it {every day|for school|at work|at home}",
    "you can {call|reach} me {in the morning|after five|at work|at home}",
)
_PEOPLE = (
    "{Maria|Tom|Aisha|Ken|Olga|Luis|Nina|Raj|Emma|Paul|Sara|Jonas|Mei|Omar|Ruth|Ivan|Clara|Ben|Yuki|Anna|David|Leila|Marc"
    "|Eva|Sam|Greta|Hugo|Priya|Dan|Zoe}"
)
_GREETINGS = (
    f"{{Hi|Hello|Hey|Good morning|Good evening}}{{|| {_PEOPLE}}}{{,\n|. |! }}",
    "{Hi there|Hello team|Dear support|To whom it may concern}{,\n|. |! }",
)
_CLOSINGS = (f"{{ |\n}}{{Thanks|Thank you|Many thanks|Regards|Best regards|Cheers|Best}}{{||!|, {_PEOPLE}}}",)
#: Letters that nobody reads as a digit.
_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
_SPELLING = {
    "acount": "account", "adress": "address", "chargd": "charged", "curier": "courier", "pasword": "password",
    "paymnet": "payment", "refudn": "refund", "retrun": "return", "plese": "please", "tommorow": "tomorrow",
    "imediately": "immediately", "unaceptable": "unacceptable", "rediculous": "ridiculous", "custmer": "customer",
    "sevice": "service", "stoped": "stopped", "nubmer": "number", "yesteday": "yesterday",
    "wroking": "working", "recieve": "receive", "delivry": "delivery", "invioce": "invoice", "teh": "the", "becuase": "because",
}  # fmt: skip
_MISSPELT = re.compile(rf"\b({'|'.join(_SPELLING)})\b")
_MISSPELLINGS = {right: wrong for wrong, right in _SPELLING.items()}
_BRACES = re.compile(r"\{([^{}]*)\}")
#: About what a byte-pair tokenizer makes of English: a token a word, a mark, a digit.
_TOKENS = re.compile(r"[^\W\d]+|\d|[^\w\s]")
_SHORTEST, _ROOM, _LONGEST = 10, 30, 41


def _write(rng: random.Random) -> Ticket:
    category, product = rng.choice(FIELDS["category"]), rng.choice(FIELDS["product"])
    priority = rng.choices(FIELDS["priority"], (3, 4, 3))[0]
    sentiment = rng.choices(FIELDS["sentiment"], (4, 3, 3))[0]
    order = f"{rng.choice(_LETTERS)}-{rng.randrange(10_000):04}" if rng.random() < 0.75 else None
    answer = {"category": category, "product": product, "priority": priority, "sentiment": sentiment, "order": order}

    issue = _say(rng, _ISSUES[category]).replace("@", rng.choice(_NAMES[product])).replace("$", _amount(rng))
    after = ""
    if order and rng.random() < 0.5:
        issue += rng.choice(_INLINE_ORDERS).replace("#", order)
    elif order:
        after = _say(rng, _ORDERS).replace("#", order)
    elif rng.random() < 0.15:
        after = _say(rng, _NO_ORDER)
    moods = [_say(rng, _SENTIMENTS[sentiment]), _say(rng, _PRIORITIES[priority])]
    rng.shuffle(moods)
    first = rng.random() < 0.25  # the mood before the matter
    sentences = [*moods[: int(first)], issue, after, *moods[int(first) :]]
    return Ticket(_finish(rng, [s for s in sentences if s], angry=sentiment == "angry"), answer)


def _finish(rng: random.Random, sentences: list[str], *, angry: bool) -> str:
    """One text: asides where the sentences are short, a greeting and a closing where there is room."""
    text = _join(rng, sentences, angry=angry)
    for aside in rng.sample(_ASIDES, 3):
        if _length(text) < _SHORTEST or (_length(text) < 16 and rng.random() < 0.05):
            text = f"{text} {_join(rng, [_say(rng, [aside])], angry=False)}"
    if rng.random() < 0.2 and _length(text) <= _ROOM:
        text = _say(rng, _GREETINGS) + text
    if rng.random() < 0.2 and _length(text) <= _ROOM:
        text += _say(rng, _CLOSINGS)
    return _mistype(rng, text)


def _join(rng: random.Random, sentences: Sequence[str], *, angry: bool) -> str:
    def end(sentence: str) -> str:
        if sentence.startswith(("can ", "how ")):
            return "?"
        return "!" if angry and "order" not in sentence and rng.random() < 0.4 else "."

    return " ".join(s[0].upper() + s[1:] + end(s) for s in sentences)


def _mistype(rng: random.Random, text: str) -> str:
    """Now and then all in small letters, or one common misspelling; never in an order number."""
    chance = rng.random()
    if chance < 0.02:
        return " ".join(word if _ORDER.search(word.lower()) else word.lower() for word in text.split(" "))
    words = [word for word in _MISSPELLINGS if re.search(rf"\b{word}\b", text)]
    if chance < 0.05 and words:
        word = rng.choice(words)
        return re.sub(rf"\b{word}\b", _MISSPELLINGS[word], text, count=1)
    return text


def _say(rng: random.Random, phrases: Sequence[str]) -> str:
    phrase = rng.choice(phrases)
    while _BRACES.search(phrase):
        phrase = _BRACES.sub(lambda found: rng.choice(found[1].split("|")), phrase, count=1)
    return phrase


def _length(text: str) -> int:
    return len(_TOKENS.findall(text))


def _amount(rng: random.Random) -> str:
    return f"${rng.randrange(9, 400)}{rng.choice(('', '', '', '.50', '.90'))}"
