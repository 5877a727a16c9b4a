"""Quotes made by rule from parts in many languages: near misses, which must not count, and the same words in another
typography, which must. Shared by the tests and by the benchmark of evidence."""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

PARTS = (
    "Your refund of $1,200.50 for order #W2378156 was approved on 2026-05-20 at 10:30 am.",
    "I'm sorry, but flight HAT170 from JFK to SEA on May 17 isn't refundable within 24 hours.",
    "The package weighs 12.5 kg and ships - free of charge - to Anna Müller, 3rd floor, within 3-5 days.",
    'The gift card balance is €75, the final office fee is 10% and the discount code is "SPRING-26".',
    "She doesn't qualify: her ticket (basic economy) was bought 3 days ago; only business class can be changed.",
    "**Total:** 450 USD\n- flight HAT039, 2 bags\n- insurance: `yes`\nThe temperature was -5 °C at 6 pm.",
    "Die Bestellung Nr. 7 wird nicht storniert; die Erstattung von 1.200,50 € erfolgt am 20.05.2026 in der Straße.",
    "Ihr Flug LH401 ist bestätigt: Sitzplatz 12A, Gepäck 23 kg, Abflug um 14:35 Uhr ab München.",
    "Votre commande n° 4417 n'a pas été annulée\u00a0; le remboursement de 89,90 € arrivera d'ici 5 jours à l'hôtel.",
    "Le vol AF1234 décolle à 7 h 45 de Paris-Orly, et l'annulation gratuite est possible jusqu'au 3 juin 2026.",
    "Su pedido 9113 no fue cancelado; el reembolso de 45,20 € llegará el 12 de mayo de 2026 a la señora Muñoz.",
    "La reserva QX7T2 está confirmada para 2 adultos y 1 niño, con salida a las 18:20 desde Málaga.",
    "Il rimborso di 120 € per l'ordine 55 non è stato approvato perché la richiesta è arrivata dopo 30 giorni.",
    "O seu pedido 8841 não foi enviado; o prazo é de 15 dias úteis e o valor total é R$ 310,00.",
    "Uw bestelling 6620 is niet verzonden; de terugbetaling van 59,95 euro komt binnen 8 werkdagen.",
    "Zamówienie 7302 nie zostało anulowane; zwrot 249 zł nastąpi do 21 maja 2026 na konto Łukasza.",
    "Ваш заказ № 5519 не отменён; возврат 3 400 рублей поступит до 20 мая 2026 года на карту Анны.",
    "Η παραγγελία 2208 δεν ακυρώθηκε· η επιστροφή 35 ευρώ θα γίνει στις 12 Μαΐου 2026 στην Αθήνα.",
    "Siparişiniz 4471 iptal edilmedi; 650 lira iade 14 Mayıs 2026 tarihinde İstanbul şubesinden yapılacak.",
    "Đơn hàng 3390 của bạn chưa bị hủy; khoản hoàn tiền 500 nghìn đồng sẽ đến trước ngày 25 tháng 5.",
    "لم يتم إلغاء الطلب رقم 7714، وسيصل المبلغ 320 درهم خلال 6 أيام إلى حساب السيدة ليلى.",
    "ההזמנה 5582 לא בוטלה, וההחזר בסך 140 שקלים יגיע תוך 9 ימים לחשבון של דנה.",
    "आपका ऑर्डर 6673 रद्द नहीं किया गया है; 899 रुपये की वापसी 11 दिनों में मीरा के खाते में आएगी।",
    "您的订单4417没有取消，退款320元将在5月20日之前退回到王小明的银行卡。",
    "ご注文8841はキャンセルされていません。返金2,500円は5月12日までに田中様の口座に届きます。",
    "주문 7302번은 취소되지 않았으며 환불 금액 45,000원은 5월 20일까지 김민수 님 계좌로 입금됩니다.",
    'get_order {"customer":"Anna Müller","include_items":true,"order_id":"#W2378156","since":"2026-05-20"}',
    '{"orders":[{"amount":1200.5,"currency":"USD","id":"W12","items":["T-Shirt, large","Mug"],"status":"pending"}],'
    '"refundable":false,"seats":[12,13]}',
    '{"flight":"HAT170","from":"JFK","price":{"economy":155,"tax":-5},"status":"on time","to":"SEA","weight":"12 kg"}',
    '{"message":"The order \\"W12\\" wasn\'t shipped.\\n Refund: $45.20 within 3–5 days.","path":"C:\\\\files\\\\x1"}',
)
"""What an agent said, called and was answered, each with numbers and names to get wrong."""

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_OTHER_WORDS = (
    "really",
    "today",
    "cancelled",
    "order",
    "nicht",
    "jamais",
    "nunca",
    "заказ",
    "取消",
    "إلغاء",
    "confirmed",
)
_TWINS = str.maketrans("aceopxyABEKMHOPCTX", "асеорхуАВЕКМНОРСТХ")  # Cyrillic letters that look Latin
_UNITS = {
    "kg": "g", "USD": "EUR", "am": "pm", "pm": "am", "days": "hours", "hours": "days", "€": "$", "$": "€", "%": "‰",
    "euro": "cent", "zł": "gr", "рублей": "долларов", "ευρώ": "δολάρια", "lira": "dolar", "درهم": "ريال", "元": "角",
    "円": "銭", "원": "달러", "jours": "heures", "Tage": "Stunden", "giorni": "mesi", "dias": "meses", "bags": "boxes",
    "शेकल": "रुपये", "रुपये": "डॉलर", "שקלים": "דולרים", "°C": "°F", "adultos": "niños", "werkdagen": "weken",
}  # fmt: skip
_NEGATIONS = (
    "n't", " not", " no", "nicht ", "n'", " pas", " non", " não", " niet", " nie", "не ", "δεν ", "chưa ", "لم ",
    "לא ", " नहीं", "没有", "wasn't", "doesn't", "isn't",
)  # fmt: skip
_INSIDE = {
    "refundable": "non-refundable",
    "approved": "unapproved",
    "confirmed": "unconfirmed",
    "possible": "impossible",
}


@dataclass(frozen=True, kw_only=True)
class Made:
    """A quote, the part that it is checked against, and the rule that made it."""

    rule: str
    quote: str
    part: str


def near_misses(seed: int = 0, rounds: int = 2) -> list[Made]:
    """Quotes in which one thing differs from the part."""
    draw = random.Random(seed)
    out: list[Made] = []
    for part in PARTS:
        for rule, change in _CHANGES.items():
            for _ in range(rounds):
                start, end = _stretch(part, draw)
                changed = change(part[start:end], draw)
                if changed is not None and _letters(changed) not in _letters(part) and changed != part[start:end]:
                    out.append(Made(rule=rule, quote=changed, part=part))
        out += [Made(rule="cut", quote=quote, part=part) for quote in _cuts(part, draw)]
    for word, inside in _INSIDE.items():
        for frame in ("It is {} in this case and stays so.", "the fare, {} since May, is in your account"):
            out.append(Made(rule="inside", quote=frame.format(word).split(" ", 2)[2], part=frame.format(inside)))
    return _unique(out)


def true_quotes(seed: int = 0, rounds: int = 2) -> list[Made]:
    """Quotes of the part's own words in another typography, on either side."""
    draw = random.Random(seed)
    out: list[Made] = []
    for part in PARTS:
        for rule, retype in _RETYPED.items():
            for _ in range(rounds):
                start, end = _stretch(part, draw)
                quote = retype(part[start:end], draw)
                if quote is not None and quote != part[start:end]:
                    out.append(Made(rule=rule, quote=quote, part=part))
                if rule not in _QUOTES_ALONE and not part.startswith(("{", "get_")):
                    typed = retype(part[start:end], draw)
                    if typed is not None:
                        shown = f"{part[:start]}{typed}{part[end:]}"
                        out.append(Made(rule=f"{rule} in the part", quote=part[start:end], part=shown))
        for _ in range(rounds * 2):
            start, end = _stretch(part, draw)
            quote = part[start:end]
            for name in draw.sample(["curly", "no-break spaces", "case", "line breaks", "dashes", "trailing"], 3):
                quote = _RETYPED[name](quote, draw) or quote
            out.append(Made(rule="several", quote=quote, part=part))
    return _unique(out)


def _unique(made: list[Made]) -> list[Made]:
    return list({(one.quote, one.part): one for one in made}.values())


def _letters(text: str) -> str:
    """Only what must not differ."""
    return "".join(letter for letter in unicodedata.normalize("NFKC", text).casefold() if letter.isalnum())


def _ends(part: str) -> tuple[list[int], list[int]]:
    """Where words may begin and end: at white space, or anywhere in scripts without it."""
    if part[:1] == "{":
        return [m.start() for m in re.finditer(r'"(?=[a-z_]+":)', part)], [
            m.end() for m in re.finditer(r'"(?=,"|}\]|\])|(?<=[0-9a-z])(?=,"|})', part)
        ]
    if " " not in part:
        places = [0, *(m.end() for m in re.finditer("[，。]", part)), len(part)]
        return places[:-1], places[1:]
    words = [found.span() for found in re.finditer(r"\S+", part)]
    whole = [(start, end) for start, end in words if any(map(str.isalnum, part[start:end]))]
    return [start for start, _ in whole], [end for _, end in whole]


def _stretch(part: str, draw: random.Random) -> tuple[int, int]:
    """A run of whole words, long enough to count."""
    starts, ends = _ends(part)
    runs = [(start, end) for start in starts for end in ends if end - start >= 24]
    # a run that begins or ends within a number of several words would be no whole quote
    runs = [
        (start, end)
        for start, end in runs
        if not re.match(r"\d{3}\b", part[start:end])
        and not re.search(r"\b\d{1,3}$", part[start:end])
        and not (re.search(r"\d$", part[start:end]) and re.match(r"\s*[€$%°]", part[end:]))
        and not re.search(r"[€$]\s*$", part[:start])
        and not re.search(r"[€$]$", part[start:end])
    ]
    return draw.choice(runs) if runs else (0, len(part))


def _digit(text: str, draw: random.Random) -> str | None:
    places = [place for place, letter in enumerate(text) if letter.isdecimal()]
    if not places:
        return None
    place = draw.choice(places)
    other = draw.choice([digit for digit in "0123456789" if digit != text[place]])
    return draw.choice(
        [
            text[:place] + other + text[place + 1 :],
            text[:place] + text[place] + text[place:],
            text[:place] + other + text[place:],
        ]
    )


def _word(text: str, draw: random.Random) -> str | None:
    words = list(_WORD.finditer(text))
    if len(words) < 2:
        return None
    found = draw.choice(words)
    return f"{text[: found.start()]}{draw.choice(_OTHER_WORDS)}{text[found.end() :]}"


def _letter(text: str, draw: random.Random) -> str | None:
    places = [place for place, letter in enumerate(text) if letter.isalpha()]
    place = draw.choice(places)
    kind = draw.randrange(3)
    if kind == 0:  # a letter lost
        return text[:place] + text[place + 1 :]
    if kind == 1:  # one that looks the same
        twin = text[place].translate(_TWINS)
        return text[:place] + twin + text[place + 1 :] if twin != text[place] else None
    return text[:place] + text[place] + "x" + text[place + 1 :]


def _negation(text: str, draw: random.Random) -> str | None:
    there = [word for word in _NEGATIONS if word in text]
    return text.replace(draw.choice(there), "", 1) if there else None


def _negated(text: str, draw: random.Random) -> str | None:
    words = list(_WORD.finditer(text))
    found = draw.choice(words)
    negation = draw.choice(["not", "nicht", "ne", "no", "не", "不", "un", "in"])
    gap = "" if negation in ("un", "in") else " "
    return f"{text[: found.start()]}{negation}{gap}{text[found.start() :]}"


def _entity(text: str, draw: random.Random) -> str | None:
    """Two letters or digits of a code or a name change places."""
    named = [found for found in _WORD.finditer(text) if found[0][:1].isupper() or any(map(str.isdigit, found[0]))]
    for found in draw.sample(named, len(named)):
        swaps = [place for place in range(len(found[0]) - 1) if found[0][place] != found[0][place + 1]]
        if swaps:
            place = found.start() + draw.choice(swaps)
            return f"{text[:place]}{text[place + 1]}{text[place]}{text[place + 2 :]}"
    return None


def _unit(text: str, draw: random.Random) -> str | None:
    there = [unit for unit in _UNITS if re.search(rf"(?<![^\W\d_]){re.escape(unit)}(?![^\W\d_])", text)]
    if not there:
        return None
    unit = draw.choice(there)
    return re.sub(rf"(?<![^\W\d_]){re.escape(unit)}(?![^\W\d_])", lambda _: _UNITS[unit], text, count=1)


def _order(text: str, draw: random.Random) -> str | None:
    words = list(_WORD.finditer(text))
    pairs = [(a, b) for a, b in pairwise(words) if a[0].casefold() != b[0].casefold()]
    if not pairs:
        return None
    one, two = draw.choice(pairs)
    return f"{text[: one.start()]}{two[0]}{text[one.end() : two.start()]}{one[0]}{text[two.end() :]}"


def _cuts(part: str, draw: random.Random) -> Iterator[str]:
    """Quotes that begin or end within a word or a number."""
    starts, ends = _ends(part)
    words = [found for found in _WORD.finditer(part) if len(found[0]) > 2 and found[0].isascii()]
    for found in draw.sample(words, min(3, len(words))):
        inside = found.start() + draw.randrange(1, len(found[0]) - 1)
        after = [end for end in ends if end - inside >= 20]
        if after:
            yield part[inside : draw.choice(after)]
        before = [start for start in starts if inside - start >= 20]
        if before:
            yield part[draw.choice(before) : inside]


_CHANGES: dict[str, Callable[[str, random.Random], str | None]] = {
    "digit": _digit,
    "word": _word,
    "letter": _letter,
    "negation": _negation,
    "negated": _negated,
    "entity": _entity,
    "unit": _unit,
    "order": _order,
}


def _curly(text: str, draw: random.Random) -> str | None:
    double = draw.choice(["\u201c\u201d", "\u201e\u201c", "\u00ab\u00bb"])
    text = re.sub('"([^"]*)"', lambda found: f"{double[0]}{found[1]}{double[1]}", text)
    return text.replace("'", draw.choice("\u2019\u02bc"))


def _dashes(text: str, draw: random.Random) -> str:
    text = re.sub(r"(?<=\S)[-\u2013](?=\S)", lambda _: draw.choice("\u2010\u2011\u2013"), text)
    return re.sub(r" [-\u2013\u2014] ", lambda _: draw.choice([" \u2013 ", " \u2014 ", " -- "]), text)


def _spaces(text: str, draw: random.Random) -> str:
    return re.sub(" ", lambda _: draw.choice(["\u00a0", "\u202f", " ", "\u2003", "  "]), text)


def _lines(text: str, draw: random.Random) -> str:
    return re.sub(r"\s", lambda _: draw.choice(["\n", " ", "\r\n", "\t"]), text)


def _marked(text: str, draw: random.Random) -> str:
    words = list(re.finditer(r"(?:(?<=\s)|^)\w+(?=\s|$|[.,]\s)", text))
    if not words:
        return f"**{text}**"
    one = draw.choice(words)
    mark = draw.choice(["**", "*", "_", "`", "~~", "__"])
    return f"{text[: one.start()]}{mark}{one[0]}{mark}{text[one.end() :]}"


def _list(text: str, draw: random.Random) -> str:
    return f"{draw.choice(['- ', '* ', '## ', '> ', '**', '• '])}{text}"


def _escapes(text: str, draw: random.Random) -> str:
    escaped = json.dumps(text, ensure_ascii=draw.random() < 0.5)
    return escaped if draw.random() < 0.3 else escaped[1:-1]


def _case(text: str, draw: random.Random) -> str:
    if "İ" in text or "ı" in text:
        return text  # which letter is small i is another one in Turkish
    return draw.choice([text.upper, text.lower, text.title])() if "ß" not in text else text.lower()


def _wide(text: str, draw: random.Random) -> str:
    return "".join(chr(ord(letter) + 0xFEE0) if "!" < letter <= "~" and letter.isalnum() else letter for letter in text)


def _ligatures(text: str, draw: random.Random) -> str:
    for plain, one in (("ffi", "ﬃ"), ("ff", "ﬀ"), ("fi", "ﬁ"), ("fl", "ﬂ")):
        text = text.replace(plain, one)
    return unicodedata.normalize("NFD", text)


def _trailing(text: str, draw: random.Random) -> str:
    return text.rstrip(".,;:!") + draw.choice([".", ",", "", "!", "...", "…", '."', ".)", " ."])


def _hidden(text: str, draw: random.Random) -> str:
    places = [found.start() for found in re.finditer(r"(?<=\S) ", text)] or [len(text)]
    place = draw.choice(places)
    return text[:place] + draw.choice("\u200b\u00ad\u2060\ufeff\u200e") + text[place:]


def _pieces(text: str, draw: random.Random) -> str | None:
    words = text.split(" ")
    if len(words) < 8 or '"' in text or any(map(str.isdigit, words[3] + words[-4])) or not "".join(words).isascii():
        return None
    if len(" ".join(words[:3])) < 12 or len(" ".join(words[-3:])) < 12 or any(map(str.isdigit, " ".join(words[2:-2]))):
        return None
    return f"{' '.join(words[:3])} {draw.choice(['…', '...', '[...]', '[…]'])} {' '.join(words[-3:])}"


_RETYPED: dict[str, Callable[[str, random.Random], str | None]] = {
    "curly": _curly,
    "dashes": _dashes,
    "no-break spaces": _spaces,
    "line breaks": _lines,
    "markdown": _marked,
    "list": _list,
    "escapes": _escapes,
    "case": _case,
    "full width": _wide,
    "ligatures": _ligatures,
    "trailing": _trailing,
    "hidden": _hidden,
    "pieces": _pieces,
}
_QUOTES_ALONE = frozenset({"escapes", "trailing", "pieces", "list"})

__all__ = ["PARTS", "Made", "near_misses", "true_quotes"]
