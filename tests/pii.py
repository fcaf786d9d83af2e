"""Sentences with personal data of known places, and sentences with what only looks like it. Made here; nobody's."""

import random
from dataclasses import dataclass

from store.policy import Redacted


@dataclass(frozen=True)
class Labelled:
    """A text and what in it is personal, by its place."""

    text: str
    spans: tuple[tuple[int, int, Redacted], ...]


FIRST = ["anna", "ben", "chidi", "dora", "emil", "fatima", "george", "hana", "ivan", "jing", "kofi", "lena", "maria", "nils"]
LAST = ["abel", "baker", "costa", "diaz", "evans", "fischer", "garcia", "haddad", "ito", "jensen", "kim", "lopez", "meyer", "tan"]
HOSTS = [
    "gmail.com",
    "outlook.de",
    "firma.co.uk",
    "uni-bonn.de",
    "mail.example.org",
    "acme.io",
    "corp.internal",
    "posteo.net",
    "proton.me",
    "tuta.com.br",
]
JSON = '{{"value": "{}"}}'
FRAMES: dict[Redacted, list[str]] = {
    "email": ["Please write to {}.", "My address is {} if you need it", "from: {}, subject: order", JSON, "{} wrote to us", "<{}>"],
    "phone": ["Call me at {}.", "My phone number is {}, any time.", "Tel. {}", "reach me on {} after six", '{{"phone": "{}"}}'],
    "iban": ["Transfer it to {} please.", "IBAN: {}", "my account {} was debited", '{{"iban": "{}"}}', "Konto {}."],
    "card": ["I paid with {}.", "card number {} was declined", "Visa {}, valid thru 09/29", JSON, "charged twice on {}"],
    "ip": ["The request came from {}.", "ping {} fails", "host {} is down since nine", JSON, "allow {} in the firewall"],
    "ssn": ["My SSN is {}.", "social security number: {}", '{{"ssn": "{}"}}', "SSN {} on the form"],
    "key": ["Use {} for now.", "export OPENAI_API_KEY={}", "it says invalid: {}", JSON, "curl -H 'Authorization: Bearer {}'"],
}
HARD = [
    "Order {d10} has shipped.", "invoice no. {d8}, {d3}.{d2} EUR", "version 2.{d1}.{d1} of the library", "reference {d12}",
    "the meeting is on 2024-0{d1}-1{d1} at 14:{d2}", "ISBN 978-3-16-14{d4}-0", "tracking number 1Z{d10}", "room {d3}, floor {d1}",
    "id: {hex8}-{hex4}-4{hex3}-a{hex3}-{hex12}", "commit {hex40}", "it costs ${d4}.{d2}", "ratio {d1}.{d2}:{d1}", "zip code {d5}",
    "the score was {d2}-{d2}", "population {d1},{d3},{d3}", "part number {d3}-{d4}-A", "12:{d2}:{d2} INFO started",
    "{d5} steps and {d4} calories", "section 4.{d1}.{d1}", "timestamp 17{d8}", "serial SN{d9}", "@anna mentioned you",
    "the password is on the note", "what is a secret?", "my token expired", "MAC 00:1b:44:11:3a:b7", "python 3.11.{d1}",
    "npm install lodash@4.17.{d2}", "coordinates 52.5{d3}, 13.4{d3}",
]  # fmt: skip


def corpus(count: int, seed: int = 0) -> list[Labelled]:
    """`count` texts of one to four sentences, of which three in five have a value of one of the kinds, each kind as often."""
    rng = random.Random(seed)
    return [_text(rng) for _ in range(count)]


#: Written so that patterns are not to be expected to find it; (before, value, after).
OBSCURE: dict[Redacted, list[str]] = {
    "email": ["anna.lopez (at) gmail.com", "ben at outlook dot de", "chidi[at]acme[dot]io"],
    "phone": ["two one two, five five five, oh one nine nine", "079 460 8 25", "555-0143"],
    "iban": ["DE89-3704-0044-0532-0130-00", "DE 89 370400440532013000", "3704 0044 / 0532013000"],
    "card": ["4111.1111.1111.1111", "the one that ends in 1881", "41 11 11 11 11 11 11 11"],
    "ip": ["10 dot 1 dot 2 dot 3", "167772163", "10.1.2.x"],
    "ssn": ["536904399", "536/90/4399", "536 dash 90 dash 4399"],
    "key": ["Tulip-77-garden", "sk proj 8f7a 11bc 99de", "hunter2"],
}


def obscured() -> list[Labelled]:
    """Personal data that is written in no usual way: to know what is not caught."""
    found = []
    for kind, values in OBSCURE.items():
        for frame in FRAMES[kind]:
            before, after = frame.replace("{{", "\1").replace("}}", "\2").split("{}")
            for value in values:
                text = (before + value + after).replace("\1", "{").replace("\2", "}")
                found.append(Labelled(text, ((len(before), len(before) + len(value), kind),)))
    return found


def _text(rng: random.Random) -> Labelled:
    text, spans = "", []
    for _ in range(rng.randint(1, 4)):
        if text:
            text += rng.choice([" ", "\n"])
        if rng.random() < 0.4:
            text += _fill(rng, rng.choice(HARD))
            continue
        kind = rng.choice(list(FRAMES))
        before, after = rng.choice(FRAMES[kind]).replace("{{", "\1").replace("}}", "\2").split("{}")
        value = _value(rng, kind)
        start = len(text) + len(before)
        spans.append((start, start + len(value), kind))
        text += (before + value + after).replace("\1", "{").replace("\2", "}")
    return Labelled(text, tuple(spans))


def _value(rng: random.Random, kind: Redacted) -> str:
    if kind == "email":
        name = rng.choice(
            [f"{rng.choice(FIRST)}.{rng.choice(LAST)}", f"{rng.choice(FIRST)}{rng.randint(1, 99)}", f"{rng.choice(LAST)}+news"]
        )
        value = f"{name}@{rng.choice(HOSTS)}"
        return value.upper() if rng.random() < 0.1 else value
    if kind == "phone":
        return _fill(rng, rng.choice([
            "+1 212 555 {d4}", "(415) 555-{d4}", "646-555-{d4}", "+49 30 2345{d4}", "+44 20 7946 0{d3}", "+33 1 42 68 {d2} {d2}",
            "+1-312-555-{d4}", "+442079460{d3}", "212.555.{d4}", "+91 98765 4{d4}", "030 2345{d4}", "2125550{d3}",
        ]))  # fmt: skip
    if kind == "iban":
        country, account = rng.choice([("DE", "{d9}{d9}"), ("FR", "{d9}{d9}{d5}"), ("ES", "{d10}{d10}"), ("NL", "ABNA{d10}")])
        value = _iban(country, _fill(rng, account))
        return " ".join(value[at : at + 4] for at in range(0, len(value), 4)) if rng.random() < 0.5 else value
    if kind == "card":
        digits = _luhn(_fill(rng, rng.choice(["4{d9}{d5}", "51{d9}{d4}"])))
        joint = rng.choice(["", " ", "-"])
        return joint.join(digits[at : at + 4] for at in range(0, 16, 4))
    if kind == "ip":
        if rng.random() < 0.3:
            return _fill(rng, rng.choice(["2001:db8:{hex4}:{hex4}::{hex3}", "fe80::{hex4}:{hex4}:{hex4}:{hex4}"]))
        return ".".join(str(rng.randint(1, 254)) for _ in range(4))
    if kind == "ssn":
        return f"{rng.randint(101, 665)}-{rng.randint(11, 98)}-{rng.randint(1000, 9989)}"
    return _fill(rng, rng.choice([
        "sk-proj-{key40}", "sk_live_{key24}", "AKIA{upper16}", "ghp_{key36}", "github_pat_{key22}_{key40}", "glpat-{key20}",
        "xoxb-{d10}-{d10}-{key24}", "AIza{key35}", "hf_{key34}", "eyJ{key20}.eyJ{key40}.{key40}", "npm_{key36}",
    ]))  # fmt: skip


_ALPHABETS = {
    "d": "0123456789", "hex": "0123456789abcdef", "upper": "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567",
    "key": "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789",
}  # fmt: skip


def _fill(rng: random.Random, frame: str) -> str:
    """{d4} becomes four digits, and so on."""
    text = ""
    while "{" in frame:
        before, _, rest = frame.partition("{")
        what, _, frame = rest.partition("}")
        name = what.rstrip("0123456789")
        text += before + "".join(rng.choices(_ALPHABETS[name], k=int(what[len(name) :])))
    return text + frame


def _luhn(digits: str) -> str:
    total = sum(sum(divmod(int(digit) * (2 - at % 2), 10)) for at, digit in enumerate(digits))
    return digits + str(-total % 10)


def _iban(country: str, account: str) -> str:
    number = int("".join(str(int(letter, 36)) for letter in f"{account}{country}00"))
    return f"{country}{98 - number % 97:02}{account}"
