"""Other words for common things: synonyms, broader words, translations. Written for this project.

A small table for what a benchmark's classes are usually called, not a thesaurus: callers add their
own words. Everything here names the class itself or a kind of thing that it is; what merely comes
with it ("milk" for "cow") is left to the search over a vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from clipproj.models.words import name_key

_PLACES = 16
LANGUAGES = ("Spanish", "French", "German", "Italian", "Russian", "Chinese")

# name: synonyms: broader words: one word in each of LANGUAGES
_TABLE = """
airplane: plane, aeroplane, aircraft, jet, airliner: vehicle, flying machine: avión, avion, Flugzeug, aereo, самолёт, 飞机
apple: red apple, green apple, fruit of the apple tree: fruit, food: manzana, pomme, Apfel, mela, яблоко, 苹果
automobile: car, motorcar, sedan, auto: vehicle, motor vehicle: automóvil, voiture, Auto, automobile, автомобиль, 汽车
ball: soccer ball, football, basketball, globe, sphere: toy, sports equipment: pelota, balle, Ball, palla, мяч, 球
banana: plantain, peeled banana, yellow banana: fruit, food: plátano, banane, Banane, banana, банан, 香蕉
bear: grizzly, brown bear, bruin, teddy bear: animal, mammal, predator: oso, ours, Bär, orso, медведь, 熊
bicycle: bike, cycle, two-wheeler, pushbike: vehicle: bicicleta, vélo, Fahrrad, bicicletta, велосипед, 自行车
bird: birdie, songbird, fowl, sparrow: animal: pájaro, oiseau, Vogel, uccello, птица, 鸟
boat: ship, sailboat, rowing boat, dinghy, vessel: vehicle, watercraft: barco, bateau, Boot, barca, лодка, 船
book: volume, novel, textbook, tome, paperback: printed matter, publication: libro, livre, Buch, libro, книга, 书
bus: coach, omnibus, school bus, double-decker: vehicle, public transport: autobús, autobus, Bus, autobus, автобус, 公交车
butterfly: monarch butterfly, swallowtail, lepidopteran: insect, animal: mariposa, papillon, Schmetterling, farfalla, бабочка, 蝴蝶
cake: birthday cake, gateau, layer cake, torte: dessert, food: pastel, gâteau, Kuchen, torta, торт, 蛋糕
car: automobile, motorcar, sedan, auto, hatchback: vehicle, motor vehicle: coche, voiture, Auto, macchina, машина, 汽车
cat: kitty, kitten, feline, pussycat, tomcat, tabby, house cat: animal, pet, mammal: gato, chat, Katze, gatto, кошка, 猫
chair: seat, armchair, stool: furniture: silla, chaise, Stuhl, sedia, стул, 椅子
chicken: hen, rooster, cockerel, chick, poultry: bird, animal: gallina, poule, Huhn, gallina, курица, 鸡
clock: timepiece, alarm clock, watch, wall clock: instrument: reloj, horloge, Uhr, orologio, часы, 时钟
cow: cattle, bull, heifer, calf, ox: animal, farm animal, mammal: vaca, vache, Kuh, mucca, корова, 奶牛
crown: tiara, diadem, coronet, king's headdress: headwear, jewellery: corona, couronne, Krone, corona, корона, 王冠
deer: stag, doe, fawn, buck, roe: animal, mammal: ciervo, cerf, Hirsch, cervo, олень, 鹿
dog: puppy, hound, doggy, canine, pooch, mutt: animal, pet, mammal: perro, chien, Hund, cane, собака, 狗
elephant: pachyderm, African elephant, tusker, jumbo: animal, mammal: elefante, éléphant, Elefant, elefante, слон, 大象
fish: goldfish, trout, tropical fish, swimming fish: animal, seafood: pez, poisson, Fisch, pesce, рыба, 鱼
flower: blossom, bloom, rose, tulip, daisy: plant: flor, fleur, Blume, fiore, цветок, 花
fox: red fox, vixen, reynard: animal, mammal, predator: zorro, renard, Fuchs, volpe, лиса, 狐狸
frog: toad, bullfrog, tree frog, froggy: amphibian, animal: rana, grenouille, Frosch, rana, лягушка, 青蛙
guitar: acoustic guitar, electric guitar, six-string: musical instrument: guitarra, guitare, Gitarre, chitarra, гитара, 吉他
hamburger: burger, cheeseburger, beefburger: fast food, sandwich, food: hamburguesa, hamburger, Hamburger, hamburger, гамбургер, 汉堡
heart: love heart, valentine, red heart: symbol, organ: corazón, cœur, Herz, cuore, сердце, 心
horse: pony, stallion, mare, steed, foal: animal, mammal, farm animal: caballo, cheval, Pferd, cavallo, лошадь, 马
house: home, cottage, dwelling, residence, villa: building: casa, maison, Haus, casa, дом, 房子
ice cream: gelato, ice cream cone, sundae, soft serve, sorbet: dessert, food: helado, glace, Eiscreme, gelato, мороженое, 冰淇淋
key: door key, latchkey, old key: tool, metal object: llave, clé, Schlüssel, chiave, ключ, 钥匙
lion: lioness, king of beasts, big cat with a mane: animal, mammal, predator: león, lion, Löwe, leone, лев, 狮子
monkey: ape, chimp, macaque, primate: animal, mammal: mono, singe, Affe, scimmia, обезьяна, 猴子
moon: crescent, full moon, lunar disc, half moon: celestial body: luna, lune, Mond, luna, луна, 月亮
motorcycle: motorbike, moped, scooter: vehicle: motocicleta, moto, Motorrad, motocicletta, мотоцикл, 摩托车
mouse: rat, rodent, field mouse, house mouse: animal, mammal: ratón, souris, Maus, topo, мышь, 老鼠
panda: giant panda, panda bear, bamboo bear: animal, bear, mammal: panda, panda, Pandabär, panda, панда, 熊猫
penguin: emperor penguin, king penguin, Adelie: bird, animal: pingüino, manchot, Pinguin, pinguino, пингвин, 企鹅
person: human, human being, man, woman, somebody: mammal: persona, personne, Mensch, persona, человек, 人
pig: hog, swine, piglet, boar, piggy: animal, farm animal, mammal: cerdo, cochon, Schwein, maiale, свинья, 猪
pizza: pizza slice, pepperoni pizza, margherita: fast food, food: pizza, pizza, Pizza, pizza, пицца, 披萨
rabbit: bunny, hare, cottontail, bunny rabbit: animal, pet, mammal: conejo, lapin, Kaninchen, coniglio, кролик, 兔子
rocket: spaceship, spacecraft, space rocket, missile: vehicle: cohete, fusée, Rakete, razzo, ракета, 火箭
sheep: lamb, ewe, ram, woolly animal: animal, farm animal, mammal: oveja, mouton, Schaf, pecora, овца, 绵羊
ship: vessel, ocean liner, freighter, boat: vehicle, watercraft: buque, navire, Schiff, nave, корабль, 轮船
shoe: sneaker, boot, sandal, trainer, high heel: footwear, clothing: zapato, chaussure, Schuh, scarpa, туфля, 鞋
snake: serpent, viper, cobra, python: reptile, animal: serpiente, serpent, Schlange, serpente, змея, 蛇
strawberry: red berry, berry, wild strawberry: fruit, food: fresa, fraise, Erdbeere, fragola, клубника, 草莓
telephone: phone, cell phone, mobile phone, smartphone, handset: device: teléfono, téléphone, Telefon, telefono, телефон, 电话
tiger: tigress, Bengal tiger, big striped cat: animal, mammal, predator: tigre, tigre, Tiger, tigre, тигр, 老虎
train: locomotive, railway, steam engine, tram, metro: vehicle, public transport: tren, train, Zug, treno, поезд, 火车
tree: oak, pine, palm, evergreen, sapling: plant: árbol, arbre, Baum, albero, дерево, 树
truck: lorry, pickup, delivery van, semi: vehicle, motor vehicle: camión, camion, Lastwagen, camion, грузовик, 卡车
turtle: tortoise, terrapin, sea turtle: reptile, animal: tortuga, tortue, Schildkröte, tartaruga, черепаха, 乌龟
umbrella: parasol, brolly, sunshade: accessory: paraguas, parapluie, Regenschirm, ombrello, зонт, 雨伞
whale: humpback, orca, blue whale, sperm whale: animal, mammal: ballena, baleine, Wal, balena, кит, 鲸鱼
wolf: grey wolf, timber wolf, lone wolf: animal, mammal, predator: lobo, loup, Wolf, lupo, волк, 狼
"""  # noqa: E501


@dataclass(frozen=True)
class Words:
    """Other ways to name a class: `translations` in the order of LANGUAGES; () where unknown."""

    synonyms: tuple[str, ...] = ()
    broader: tuple[str, ...] = ()
    translations: tuple[str, ...] = ()


def known_words(name: str) -> Words:
    """What the built-in table has for a class name, in any spelling; empty for others."""
    return _WORDS.get(name_key(name), Words())


def misspellings(name: str) -> tuple[str, ...]:
    """The name with a letter dropped, doubled, or swapped with the next; spelt out; in leet.

    In this order, distinct from each other and from the name, and never of a single letter. Each
    costs a text for every template, so a long name is misspelt in 16 places, evenly spaced.
    """
    short = len(name) <= _PLACES
    letters = [*range(len(name))] if short else [i * len(name) // _PLACES for i in range(_PLACES)]
    found = [name[:i] + name[i + 1 :] for i in letters]
    found += [name[: i + 1] + name[i:] for i in letters]
    found += [
        name[:i] + name[i + 1] + name[i] + name[i + 2 :] for i in letters if i + 1 < len(name)
    ]
    found += [" ".join(name), name.translate(str.maketrans("aeiost", "4310$7"))]
    clean = (one.strip() for one in found)
    return tuple(one for one in dict.fromkeys(clean) if len(one) > 1 and one != name)


def _parse(table: str) -> dict[str, Words]:
    words = {}
    for line in table.strip().splitlines():
        name, *columns = (part.strip() for part in line.split(": "))
        groups = [tuple(word.strip() for word in column.split(",")) for column in columns]
        words[name] = Words(*groups)
    return words


_WORDS = _parse(_TABLE)
