"""Words that decide whether the grammar of `_predicates` reads a prompt or leaves it to a language model."""

from __future__ import annotations

_SENTENCE = """
    a an the of with without at from to for by into onto through across around between among against over
    while that which who is are was were has have and or but as its his her their this these those up down
    off out left right some many several few no not very sits stands lies hangs rides holds wears eats
    plays runs walks jumps flies looks made filled covered named called titled entitled dressed like
    versus vs plus minus than n
"""
_QUANTITIES = """
    dozen dozens hundred hundreds thousand thousands million millions half quarter third couple pair pairs
    trio lot lots bit bunch group groups plenty number numbers way both each every all any another other
    others eleven twelve twenty
"""
_NO_THINGS = """
    something anything nothing everything someone anyone nobody everybody thing things day days night
    morning evening afternoon noon midnight dawn dusk time moment year birthday holiday season spring
    summer autumn winter past future end beginning middle centre center front back side top bottom
    distance background foreground corner hurry rush row race trip walk run break mission meeting trance
    dream nightmare mess trouble danger pain diet duty flight fight motion action love peace war
    relationship mood pose position style manner idea hope life death luck weather darkness dark
    shade silence quality masterpiece resolution detail details view angle shot perspective composition
    lighting atmosphere aesthetic scene scenes photo photos photograph photographs picture pictures image
    images painting paintings drawing drawings portrait portraits sketch illustration illustrations render
    rendering close-up closeup art artwork wallpaper family team world instant
"""
_COMPOUNDS = """
    big bang, big ben, big bird, big dipper, black forest, black friday, black hole, black tea,
    black widow, blue cheese, blue hour, blue jay, blue whale, brick lane, broken english, brown
    rice, closed circuit, glass onion, gold fish, golden eagle, golden gate, golden hour, golden ratio,
    golden retriever, green bean, green lantern, green onion, green tea, little mermaid, long jump, metal
    detector, new moon, new year, new york, old fashioned, old town, open air, open mic, orange juice,
    orange tree, paper airplane, paper clip, paper lantern, paper plane, pink floyd, plastic surgery, red
    carpet, red onion, red panda, red wine, rose wine, round table, rubber band, rubber duck, short film,
    short story, silver fox, silver lining, small talk, square root, stone age, tall tale, white house,
    white noise, white rhino, white shark, white tiger, white wine, yellow jacket
"""
_PLACES = """
    aquarium bag balcony barn barrel basket bath bathroom bathtub beach bed bedroom bench bicycle bike
    blanket boat book bookcase bookshelf bottle bowl box branch bridge bucket building bus bush cabinet
    cafe cage canoe canvas car card carpet carriage cart case castle cat cave chair chest church city
    classroom cliff closet couch counter countertop crate crib cup cupboard curtain cushion dam deck
    desert desk dish dock dog door drawer dress envelope farm fence field fireplace floor flower forest
    fork fountain frame fridge garage garden glass grass ground hammock hat hill horse house island jacket
    jar jungle keyboard kitchen ladder lake lamp laptop lawn leaf library log mat meadow microwave mirror
    moon mountain mouse mug museum nest newspaper notebook ocean office oven pan park path pedestal piano
    pier pillow plain plane plate playground pocket pond pool porch pot pumpkin raft railing refrigerator
    ring river road rock roof room rope rug sack sand sandwich saucer scarf sea shelf ship shirt shoe shop
    sidewalk sink skateboard sky sled snow sofa sphere spoon stage staircase stall station statue stone
    stool store stove street stump subway suit suitcase surfboard swamp sweater swing table tank tent tie
    toilet towel tower train tray tree truck trunk tub umbrella van vase village wagon wall wardrobe water
    wheelbarrow window wire yard backpack bin bear bird clock cow donut elephant hydrant giraffe handbag
    kite motorcycle pizza plant sheep sign toaster tv zebra cube cone circle square triangle star ball
    apple orange banana person man woman child stair step campfire
"""

SENTENCE = frozenset(_SENTENCE.split())
"""Words that occur in no name of a thing."""

QUANTITIES = frozenset(_QUANTITIES.split())
"""Numbers in disguise: "a dozen eggs" is neither one thing nor a kind of egg."""

NO_THINGS = frozenset(_NO_THINGS.split())
"""Nouns that name no thing one could point at: times, states, manners, and the image itself."""

COMPOUNDS = frozenset(" ".join(words.split()) for words in _COMPOUNDS.split(","))
"""Names whose first word only looks like a colour or an attribute."""

PLACES = frozenset(_PLACES.split())
"""Things that others may be in, on, under, behind or near. Of other words the grammar cannot tell whether
"in" says where something is ("in a hurry")."""
