"""The eight kinds of request of the built-in pairs, as tables: what is asked, what is answered, how well.

Phrases stand best level first: good, fair, poor. An empty phrase leaves its part of the answer out.
"""

from __future__ import annotations

from dpotool.data.demo_grammar import Slot, Topic, read_table

PEOPLE = ("mother", "father", "sister", "brother", "aunt", "uncle", "cousin", "teacher", "neighbour", "friend")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

OPENING = Slot(
    good=("Happy to help!", "Good question!", "Of course!", "Gladly!"),
    fair=("",),
    poor=("Whatever,", "Look,", "Obviously,"),
    weight=0.8,
    is_extra=True,
)
CLOSING = Slot(
    good=("Let me know how it goes.", "Enjoy it!", "I hope this helps you.", "Ask me if you need more."),
    fair=("",),
    poor=("Do not ask again.", "Look it up next time.", "I do not care."),
    is_extra=True,
)
DEAR = Slot(
    good=("Dear {person},", "My dear {person},", "Hello dear {person},"),
    fair=("Hello {person},", "Hello,"),
    poor=("Hey you,", "Dear {wrong_person},"),
)

COOKING = Topic(
    requests=(
        "How do I cook {food} for {people} people?",
        "How long should I cook {food} for {people} people on {day}?",
        "I want to make {food} for my {person} on {day}. How do I do it?",
    ),
    answer="{opening} {method} the {food} for {time} {how}{serve}. {closing}",
    slots={
        "opening": OPENING,
        "time": Slot(("{minutes} minutes",), ("a few minutes", "some time"), ("{wrong_minutes} minutes",), weight=1.4),
        "how": Slot(
            ("over a low heat with a little butter", "with a pinch of salt and some oil", "slowly with the lid on"),
            ("in a large pot", "on the stove"),
            ("in any old pot", "with far too much salt"),
        ),
        "serve": Slot(
            (", then serve it warm with fresh herbs", ", then let it rest and add some lemon"),
            (", then serve it", ", then put it on a plate"),
            ("", ", then eat it or not"),
            weight=0.8,
        ),
        "closing": CLOSING,
    },
    subjects=read_table(
        "food method minutes",
        "rice | boil | 15",
        "pasta | boil | 10",
        "potatoes | boil | 20",
        "eggs | boil | 8",
        "salmon | bake | 18",
        "chicken | bake | 40",
        "bread | bake | 35",
        "carrots | steam | 12",
        "beans | steam | 7",
        "fish | steam | 9",
        "mushrooms | fry | 6",
        "onions | fry | 5",
    ),
    choices={"people": ("2", "3", "4", "5", "6", "8"), "person": PEOPLE, "day": DAYS},
)

THANKS = Topic(
    requests=(
        "Write a short note to thank my {person} for the {gift}.",
        "On {day} my {person} gave me a {gift}. Write a note to say thank you.",
    ),
    answer="{dear} {thanks} for the {gift_named}. {praise} {signing}",
    slots={
        "dear": DEAR,
        "thanks": Slot(
            ("thank you so very much", "thank you from my heart", "a thousand warm thanks"),
            ("thank you", "many thanks"),
            ("okay, thanks", "I have to thank you"),
            weight=0.8,
        ),
        "gift_named": Slot(
            ("lovely {gift}", "beautiful {gift}"), ("{gift}", "present"), ("{wrong_gift}", "thing"), 1.2
        ),
        "praise": Slot(
            ("It is just what I wanted.", "It is even better than I hoped.", "I will use it every day."),
            ("It is very nice.", "I will use it."),
            ("It is not what I wanted.", "It is a bit too small."),
        ),
        "signing": Slot(
            ("With love and best wishes.", "With many kind thoughts.", "Hope to see you soon!"),
            ("",),
            ("No need to answer.", "Do not call me."),
            weight=0.8,
            is_extra=True,
        ),
    },
    choices={
        "person": PEOPLE,
        "day": DAYS,
        "gift": ("book", "lamp", "scarf", "cup", "plant", "picture", "clock", "basket", "hat", "blanket", "bag"),
    },
)

LATE = Topic(
    requests=(
        "Tell my {person} that I will be {late} minutes late for {event}.",
        "I will be {late} minutes late for {event} on {day}. Write a message to my {person}.",
    ),
    answer="{dear} {sorry} I will be {delay} late for {event_named}. {plan}",
    slots={
        "dear": DEAR,
        "sorry": Slot(
            ("I am so very sorry, but", "please forgive me, but", "I am sorry to say that"),
            ("sorry,", "just so you know,"),
            ("it is not my fault, but", "as always,"),
            weight=0.9,
        ),
        "delay": Slot(("{late} minutes",), ("a few minutes", "a bit"), ("{wrong_late} minutes",), weight=1.3),
        "event_named": Slot(("{event}",), ("our meeting",), ("{wrong_event}",)),
        "plan": Slot(
            ("Please start without me and I will join you.", "I will call you when I am close."),
            ("",),
            ("You can wait or not.", "I may not come."),
            weight=0.9,
            is_extra=True,
        ),
    },
    choices={
        "person": PEOPLE,
        "day": DAYS,
        "late": ("5", "10", "15", "20", "30", "40"),
        "event": ("dinner", "lunch", "the concert", "the film", "the lesson", "breakfast", "the game"),
    },
)

PACKING = Topic(
    requests=(
        "What should I pack for {nights} days in {place}?",
        "My {person} and I go to {place} for {nights} days on {day}. What do we need?",
    ),
    answer="{opening} {place} is {weather}, so pack {clothes} and {item}. {tip}",
    slots={
        "opening": OPENING,
        "clothes": Slot(
            ("{garment} and {nights} clean shirts", "{nights} shirts and {garment}"),
            ("{garment}", "some clothes"),
            ("{wrong_garment}", "{wrong_garment} and some shirts"),
            weight=1.4,
        ),
        "item": Slot(("{extra}", "{extra} for the long walks"), ("a bag", "some money"), ("{wrong_extra}", "no more")),
        "tip": Slot(
            ("Keep your papers in a safe place.", "Leave some room for small presents.", "Make a list and check it."),
            ("",),
            ("You will forget the rest.", "You should stay at home."),
            weight=0.8,
            is_extra=True,
        ),
    },
    subjects=read_table(
        "place weather garment extra",
        "Norway | cold | a warm coat | thick gloves",
        "Iceland | cold | a wool sweater | thick gloves",
        "Canada | cold | a warm coat | winter boots",
        "Egypt | hot | a light dress | sun cream",
        "Spain | hot | a straw hat | sun cream",
        "Greece | hot | a light dress | dark glasses",
        "Scotland | wet | a rain coat | a strong umbrella",
        "Ireland | wet | a rain coat | rubber boots",
        "Wales | wet | a hooded jacket | a strong umbrella",
    ),
    choices={"nights": ("2", "3", "4", "5", "6", "7"), "person": PEOPLE, "day": DAYS},
)

SUMS = Topic(
    requests=(
        "I have {first} {fruit} and buy {second} more. How many do I have?",
        "My {person} has {first} {fruit} and I have {second}. How many is that?",
    ),
    answer="{step} {total} {fruit_named}.",
    slots={
        "step": Slot(
            ("{first} plus {second} makes", "together that makes"),
            ("that makes", "the answer is"),
            ("I guess that is", "it must be"),
            weight=0.8,
        ),
        "total": Slot(("{sum}",), ("about {sum}",), ("{wrong_sum}",), weight=1.5),
        "fruit_named": Slot(("{fruit}", "fresh {fruit}"), ("pieces",), ("{wrong_fruit}",)),
    },
    choices={
        "first": ("2", "3", "4", "5", "6", "7"),
        "second": ("2", "3", "4", "5", "6"),
        "fruit": ("apples", "pears", "plums", "lemons", "oranges", "cherries"),
        "person": PEOPLE,
    },
    sum_of=("first", "second"),
)

PRESENTS = Topic(
    requests=(
        "Suggest a present for my {person} who likes {hobby}.",
        "My {person} turns {age} on {day} and likes {hobby}. What should I give?",
    ),
    answer="{suggest} {present} for your {who}{reason}. {wrap}",
    slots={
        "suggest": Slot(("I would choose", "how about"), ("give", "buy"), ("just get", "any shop has"), weight=0.6),
        "present": Slot(
            ("{idea}", "a good {thing}"), ("a {thing}", "something"), ("{wrong_idea}", "a cheap {wrong_thing}"), 1.4
        ),
        "who": Slot(("dear {person}", "{person}"), ("family",), ("{wrong_person}",), weight=0.9),
        "reason": Slot(
            (", because it goes so well with {hobby}", ", which is perfect for {hobby}"),
            (", because it is useful",),
            (", because nobody minds", ", for {wrong_hobby}"),
        ),
        "wrap": Slot(
            ("Add a card with a few kind words.", "Wrap it in bright paper with a ribbon."),
            ("",),
            ("Do not spend too much.", "A plastic bag will do."),
            weight=0.8,
            is_extra=True,
        ),
    },
    subjects=read_table(
        "hobby idea thing",
        "painting | a set of fine brushes | paint box",
        "gardening | a pair of garden gloves | seed box",
        "cooking | a sharp kitchen knife | cook book",
        "reading | a long mystery novel | book lamp",
        "running | a pair of soft shoes | water bottle",
        "music | two tickets for a concert | song book",
        "fishing | a light fishing rod | folding chair",
        "walking | a map of the hills | walking stick",
    ),
    choices={"person": PEOPLE, "day": DAYS, "age": ("20", "30", "40", "50", "60", "70")},
)

JOBS = Topic(
    requests=(
        "Explain to a child of {age} what a {job} does.",
        "On {day} my {person} and I will meet a {job}. What is that?",
        "My {person} wants to be a {job}. What is that?",
    ),
    answer="a {job} is somebody who {work} {where}. {closing}",
    slots={
        "work": Slot(("{task}", "{task} every day"), ("has a job",), ("{wrong_task}",), weight=1.4),
        "where": Slot(("{site}",), ("at work",), ("{wrong_site}",)),
        "closing": CLOSING,
    },
    subjects=read_table(
        "job task site",
        "baker | makes bread and cakes | in a warm bakery",
        "farmer | grows corn and milks cows | on a farm",
        "nurse | looks after sick people | in a hospital",
        "pilot | flies big planes | above the clouds",
        "painter | puts colour on walls | in new houses",
        "sailor | steers ships | on the open sea",
        "tailor | sews suits and dresses | in a small shop",
        "judge | decides what is fair | in a court",
        "miner | digs for coal and gold | deep under the ground",
    ),
    choices={"age": ("4", "5", "6", "7", "8", "9"), "person": PEOPLE, "day": DAYS},
)

PLANTS = Topic(
    requests=(
        "My {plant} has {sign}. What should I do?",
        "The {plant} of my {person} has {sign}. Can I help on {day}?",
    ),
    answer="{cause}, so {advice}{also}. {hope}",
    slots={
        "cause": Slot(
            ("{sign} on a {plant} mean {reason}",),
            ("it is {reason}", "the {plant} is not well"),
            ("it is {wrong_reason}", "the {wrong_plant} is ill"),
        ),
        "advice": Slot(
            ("please {cure}", "{cure}"), ("give it some time",), ("{wrong_cure}", "throw it away"), weight=1.5
        ),
        "also": Slot(
            (" and turn it to the light each week", " and feed it once a month"),
            ("", " and wait"),
            (" and hope for the best", " and buy a new one"),
            weight=0.8,
        ),
        "hope": Slot(
            ("It will be green and strong again in {weeks} weeks.", "New leaves should show up in {weeks} weeks."),
            ("",),
            ("It will die.", "You are not good with plants."),
            weight=0.9,
            is_extra=True,
        ),
    },
    subjects=read_table(
        "sign reason cure",
        "yellow leaves | too much water | let the soil dry for a week",
        "brown tips | dry air | spray it with water each morning",
        "soft stems | cold nights | move it to a warm room",
        "pale leaves | too little light | put it next to a window",
        "white spots | small insects | wash it with soap and water",
        "dry leaves | too little water | water it well every day",
    ),
    choices={
        "plant": ("rose", "fern", "cactus", "orchid", "palm", "tulip", "lily", "ivy", "basil"),
        "person": PEOPLE,
        "day": DAYS,
        "weeks": ("2", "3", "4"),
    },
)

WEATHER = Topic(
    requests=(
        "Will it be hot, cold or wet in {place} on {day}?",
        "My {person} goes to {place} on {day}. What weather is it there?",
    ),
    answer="it is {verdict} there.",
    slots={"verdict": Slot(("{weather}", "rather {weather}"), ("fine",), ("{wrong_weather}",))},
    subjects=tuple({name: place[name] for name in ("place", "weather")} for place in PACKING.subjects),
    choices={"person": PEOPLE, "day": DAYS},
)

TOPICS = (WEATHER, COOKING, THANKS, LATE, PACKING, SUMS, PRESENTS, JOBS, PLANTS)
