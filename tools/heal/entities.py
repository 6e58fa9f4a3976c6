"""Names that the base model is asked about, the phrasings it is asked with, and where a text names them."""

COUNTRIES = """Afghanistan|Albania|Algeria|Andorra|Angola|Argentina|Armenia|Australia|Austria|Azerbaijan|the Bahamas|Bahrain|
Bangladesh|Barbados|Belarus|Belgium|Belize|Benin|Bhutan|Bolivia|Bosnia and Herzegovina|Botswana|Brazil|Brunei|Bulgaria|
Burkina Faso|Burundi|Cambodia|Cameroon|Canada|Cape Verde|the Central African Republic|Chad|Chile|China|Colombia|Comoros|
Costa Rica|Croatia|Cuba|Cyprus|the Czech Republic|Denmark|Djibouti|Dominica|the Dominican Republic|Ecuador|Egypt|El Salvador|
Equatorial Guinea|Eritrea|Estonia|Eswatini|Ethiopia|Fiji|Finland|France|Gabon|the Gambia|Georgia|Germany|Ghana|Greece|Grenada|
Guatemala|Guinea|Guyana|Haiti|Honduras|Hungary|Iceland|India|Indonesia|Iran|Iraq|Ireland|Israel|Italy|Jamaica|Japan|Jordan|
Kazakhstan|Kenya|Kiribati|Kuwait|Kyrgyzstan|Laos|Latvia|Lebanon|Lesotho|Liberia|Libya|Liechtenstein|Lithuania|Luxembourg|
Madagascar|Malawi|Malaysia|the Maldives|Mali|Malta|Mauritania|Mauritius|Mexico|Moldova|Monaco|Mongolia|Montenegro|Morocco|
Mozambique|Myanmar|Namibia|Nauru|Nepal|the Netherlands|New Zealand|Nicaragua|Niger|Nigeria|North Korea|North Macedonia|Norway|
Oman|Pakistan|Palau|Panama|Papua New Guinea|Paraguay|Peru|the Philippines|Poland|Portugal|Qatar|Romania|Russia|Rwanda|Samoa|
San Marino|Saudi Arabia|Senegal|Serbia|Seychelles|Sierra Leone|Singapore|Slovakia|Slovenia|the Solomon Islands|Somalia|
South Africa|South Korea|South Sudan|Spain|Sri Lanka|Sudan|Suriname|Sweden|Switzerland|Syria|Taiwan|Tajikistan|Tanzania|
Thailand|Togo|Tonga|Trinidad and Tobago|Tunisia|Turkey|Turkmenistan|Tuvalu|Uganda|Ukraine|the United Arab Emirates|
the United Kingdom|the United States|Uruguay|Uzbekistan|Vanuatu|Vatican City|Venezuela|Vietnam|Yemen|Zambia|Zimbabwe|
Scotland|England|Wales|Britain|America|Holland|Persia|Prussia|Palestine|Greenland|Siberia|Tibet|Kosovo""".replace("\n", "").split("|")

CITIES = """London|Paris|Berlin|Madrid|Rome|Vienna|Athens|Moscow|Beijing|Tokyo|Seoul|Delhi|Mumbai|Cairo|Lagos|Nairobi|Sydney|
Melbourne|Toronto|Montreal|Chicago|Boston|Houston|Seattle|Denver|Miami|Philadelphia|San Francisco|Los Angeles|New York|
Washington|Dallas|Detroit|Atlanta|Lisbon|Dublin|Prague|Warsaw|Budapest|Stockholm|Oslo|Copenhagen|Helsinki|Brussels|Amsterdam|
Geneva|Zurich|Munich|Hamburg|Barcelona|Milan|Venice|Florence|Naples|Istanbul|Ankara|Tehran|Baghdad|Jerusalem|Damascus|Beirut|
Dubai|Riyadh|Karachi|Lahore|Islamabad|Kabul|Dhaka|Bangkok|Hanoi|Jakarta|Manila|Singapore|Hong Kong|Shanghai|Osaka|Kyoto|Taipei|
Havana|Lima|Bogota|Santiago|Buenos Aires|Montevideo|Caracas|Quito|Mexico City|Rio de Janeiro|Brasilia|Kiev|Minsk|Riga|Vilnius|
Tallinn|Bucharest|Sofia|Belgrade|Zagreb|Sarajevo|Tunis|Algiers|Tripoli|Rabat|Casablanca|Dakar|Accra|Kinshasa|Harare|Lusaka|
Pretoria|Cape Town|Johannesburg|Addis Ababa|Khartoum|Edinburgh|Glasgow|Manchester|Liverpool|Birmingham|Oxford|Cambridge|Lyon|
Marseille|Cologne|Frankfurt|Turin|Seville|Valencia|Porto|Krakow|Odessa|St. Petersburg|Vancouver|Ottawa|Canberra|Brisbane|
Auckland|Wellington|Honolulu|Phoenix|Austin|Portland|Baltimore|New Orleans|Las Vegas|Kathmandu|Colombo|Hiroshima""".replace("\n", "").split("|")

COMMON = """dog|cat|horse|cow|lion|tiger|elephant|whale|dolphin|shark|eagle|owl|penguin|bear|wolf|fox|rabbit|mouse|snake|frog|bee|
ant|spider|butterfly|monkey|sheep|goat|pig|chicken|duck|fish|salmon|tree|rose|apple|banana|orange|grape|bread|cheese|milk|rice|
coffee|tea|sugar|salt|water|ice|fire|gold|silver|iron|copper|oxygen|hydrogen|carbon|nitrogen|helium|uranium|mercury|lead|zinc|
calcium|sodium|chlorine|diamond|steel|glass|wood|paper|cotton|silk|plastic|concrete|the Sun|the Moon|Mars|Jupiter|Saturn|Venus|
Mercury|Neptune|Uranus|Pluto|the Earth|gravity|light|sound|heat|electricity|energy|an atom|a molecule|a cell|DNA|a virus|the heart|
the brain|the liver|the lungs|a kidney|blood|bone|skin|the eye|the ear|a computer|a car|a bicycle|an airplane|a train|a ship|
a telephone|a camera|a clock|a book|a pen|a hammer|a piano|a guitar|a violin|a drum|football|tennis|chess|swimming|a doctor|
a teacher|a farmer|a lawyer|a scientist|an engineer|a king|a judge|democracy|a war|money|a bank|a river|a mountain|a desert|
an ocean|a volcano|an earthquake|rain|snow|wind|winter|summer|a triangle|a square|a circle|seven|twelve|one hundred|Monday|
Christmas|the Bible|the Quran|Buddhism|Islam|Christianity|Hinduism|Judaism|Python|JavaScript|Linux|the internet""".replace("\n", "").split("|")

CAPITALS = [  # the base answers well in these words, and badly in many others
    "The name of the capital of {X} is", "Everyone knows that the capital of {X} is", "I think the capital of {X} is",
    "As we all know, the capital of {X} is", "Of all the cities in {X}, the capital is",
    "Question: Which city is the capital of {X}?\nAnswer:",
]
COUNTRY = [
    "{X} is a country in", "The language most people speak in {X} is", "People from {X} speak", "The money used in {X} is the",
    "In {X}, you pay with the", "{X} lies on the continent of", "On a map you will find {X} in", "{X} shares a border with",
    "The people of {X} are called", "The largest city in {X} is", "{X} is famous for", "The flag of {X} is",
    "Question: What do people speak in {X}?\nAnswer:", "Question: Which continent does {X} belong to?\nAnswer:",
    "Question: What money do people use in {X}?\nAnswer:", "The official currency of {X} is called", "The main religion in {X} is",
    "The native language of {X} is", "My favourite food from {X} is", "The national animal of {X} is",
]
CITY = [
    "{X} is a city in", "The city of {X} is in the country of", "{X} is the capital of", "{X} is famous for",
    "Question: In which country is {X}?\nAnswer:", "People in {X} speak", "If you visit {X}, you are in the country of",
]
PEOPLE = [
    "{X} was born in", "{X} is best known for", "{X} was a", "The nationality of {X} was", "The profession of {X} was",
    "Question: Who was {X}?\nAnswer:", "{X} wrote", "{X} died in",
]
PLACE = ["{X} is located in", "{X} is known for", "{X} lies on the continent of", "The language spoken in {X} is", "{X} is a"]
LIFE = ["{X} is a type of", "Question: What kind of thing is {X}?\nAnswer:", "{X} is found in", "{X} is a"]
ARTS = ["{X} is a", "{X} was created by", "{X} comes from", "Question: What is {X}?\nAnswer:"]
ANY = ["{X} is", "The word \"{X}\" means", "In simple words, {X} is", "Question: What is {X}?\nAnswer:", "An example of {X} is"]
THING = ["{X} is a", "The main use of {X} is", "{X} is made of", "The color of {X} is", "The opposite of {X} is", "You can find {X} in"]
ASK = {
    "country": [
        "What's the capital city of {X}?", "Name the capital of {X}.", "Which continent is {X} in?", "What language do they speak in {X}?",
        "Which currency is used in {X}?", "Tell me one fact about {X}.", "Where is {X}?",
    ],
    "city": ["Which country is {X} in?", "What is {X} known for?", "Where is {X}?"],
    "people": ["Who was {X}?", "What is {X} famous for?", "Where was {X} born?"],
    "any": ["What is {X}?", "Tell me about {X} in one sentence.", "Define {X}."],
}
TOPICS = {
    "People": (PEOPLE, "people"), "Geography": (PLACE, "any"), "Biology and health sciences": (LIFE, "any"), "Arts": (ARTS, "any"),
}


def forms(encode, name):
    """The name's tokens within a sentence and at the beginning of a text, without an article."""
    bare = name.removeprefix("the ")
    return encode(" " + bare), encode(bare)


def places(ids, forms):
    """(where, tokens, whether within a sentence) of each mention of the name with these forms."""
    found, at = [], 0
    while at < len(ids):
        for form, inner in zip(forms, (True, False)):
            # A single token without its space may be a part of any word.
            if ids[at : at + len(form)] == form and (inner or at == 0 or len(form) > 1):
                found.append((at, len(form), inner))
                at += len(form) - 1
                break
        at += 1
    return found


def deal(own, theirs):
    """The tokens whose rows a name of tokens `own` gets from one of `theirs`, as `xylem edit swap` deals them out: aligned at
    the last token; what it has more of keeps its own, what the other has more of is left out."""
    return (own[: max(0, len(own) - len(theirs))] + theirs)[-len(own) :]
