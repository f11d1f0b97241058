"""Which things the demo model knows by sight: emoji that look different from each other, under their CLDR short names.

It decides the list alone; how a name is drawn or asked about is none of its business.
"""

_LIST = """
cow face, tiger face, rabbit face, cat face, horse face, monkey face, dog face, pig face, frog, wolf, panda, fox,
lion, unicorn, koala, chicken, penguin, eagle, duck, owl, bat, shark, dolphin, octopus, crab, lobster, snail,
butterfly, bug, honeybee, lady beetle, spider, scorpion, turtle, snake, sauropod, T-Rex, spouting whale, blowfish,
tropical fish, elephant, zebra, kangaroo, flamingo, peacock, parrot, hedgehog, rooster, spider web, paw prints,
cactus, palm tree, evergreen tree, deciduous tree, tulip, rose, hibiscus, sunflower, maple leaf, mushroom,
four leaf clover, tomato, eggplant, grapes, watermelon, lemon, banana, pineapple, red apple, pear, peach, cherries,
strawberry, kiwi fruit, coconut, avocado, broccoli, carrot, hot pepper, cucumber, croissant, pretzel, pancakes,
cheese wedge, bacon, hamburger, french fries, pizza, hot dog, taco, popcorn, sushi, fried shrimp, doughnut, cookie,
birthday cake, shortcake, cupcake, pie, chocolate bar, candy, lollipop, custard, honey pot, soft ice cream,
hot beverage, wine glass, cocktail glass, tropical drink, beer mug, fork and knife,
airplane, rocket, helicopter, sailboat, anchor, bicycle, automobile, taxi, bus, ambulance, fire engine, police car,
tractor, locomotive, skateboard, fuel pump, stop sign, vertical traffic light, umbrella with rain drops,
closed umbrella, rainbow, snowflake, snowman, high voltage, fire, droplet, water wave, cyclone, sun with face,
crescent moon, star, cloud, tornado, volcano, tent, castle, Tokyo tower, Statue of Liberty, moai, ferris wheel,
soccer ball, basketball, baseball, tennis, volleyball, american football, bowling, ping pong, boxing glove,
pool 8 ball, game die, bullseye, trophy, kite, yo-yo, joker, puzzle piece, teddy bear, video game, artist palette,
guitar, violin, trumpet, saxophone, drum, musical keyboard, headphone, maracas, accordion,
glasses, sunglasses, necktie, t-shirt, jeans, dress, kimono, bikini, high-heeled shoe, top hat, crown, backpack,
scarf, gloves, graduation cap, ring, gem stone, lipstick,
watch, alarm clock, light bulb, candle, fire extinguisher, newspaper, scissors, locked, key, hammer, gear, magnet,
ladder, syringe, pill, telescope, dna, door, toilet, camera, television, floppy disk, bell, balloon, wrapped gift,
Christmas tree, jack-o-lantern, bomb, parachute, yarn, nazar amulet,
eye, ear, mouth, tooth, bone, brain, thumbs up, thumbs down, victory hand,
ghost, alien, alien monster, robot, skull, ogre, pile of poo, clown face, nerd face, exploding head,
red heart, green heart, blue heart, yellow heart, purple heart, broken heart, red circle, blue circle, green circle,
red square, blue square, peace symbol, yin yang, radioactive, recycling symbol, no entry, warning
"""
NAMES = tuple(" ".join(name.split()) for name in _LIST.split(","))


def characters() -> list[str]:
    """The character of every name, in order, without the variation selector that text needs and a font does not.

    Raises:
        ValueError: the package `emoji` is not installed, or knows no such name.
    """
    try:
        import emoji
    except ImportError as error:
        raise ValueError("pictures of emoji need the package emoji: pip install 'tinyserve[train]'") from error
    known = {data["en"].strip(":").replace("_", " "): text for text, data in emoji.EMOJI_DATA.items() if "en" in data}
    known |= {
        data["en"].strip(":").replace("_", " "): text
        for text, data in emoji.EMOJI_DATA.items()
        if data["status"] == emoji.STATUS["fully_qualified"]
    }
    unknown = [name for name in NAMES if name not in known]
    if unknown:
        raise ValueError(f"the package emoji {emoji.__version__} knows no {', '.join(unknown)}")
    return [known[name].replace("\ufe0f", "") for name in NAMES]
