"""Erase a class from a model by its name, check the edit, measure what it did, and undo it."""

import open_clip
import torch

import clipproj
from clipproj import audit, demo

# A CLIP of drawings that ships in the package; any name of open_clip's will do in its place.
place = f"local-dir:{demo.model_dir()}"
model, _, preprocess = open_clip.create_model_and_transforms(place)
tokenizer = open_clip.get_tokenizer(place)

# Names become texts. What stays matters as much as what goes: the edit takes out what sets "cat"
# apart from the names to keep.
texts = clipproj.embed_classes(model, tokenizer, demo.class_names(), ["a drawing of a {}."])
forget, keep = texts.select(["cat"]), texts.drop(["cat"])
projector = clipproj.nullspace(forget, keep, "hull")

# Images are for measuring alone. They lie in a folder for each class.
images = audit.load_images(demo.images_dir())


def samples():
    features = audit.image_features(model, preprocess, images)
    return audit.Samples.of_images(features, images, texts)


before, original = samples(), model.visual.attnpool.c_proj.weight.clone()
edit = clipproj.edit(model, projector)  # folded into the last projection: serving costs no more
print(clipproj.verify(model, edit.receipt).text)

result = audit.compare(before, samples(), forget)
for name in ("forget", "keep", "nearest", "probe"):  # the probe: what training still finds
    was, now = (float(getattr(scores, name)) for scores in (result.before, result.after))
    print(f"{name:12} {was:6.1%} -> {now:6.1%}")
print(f"same answer as before, all others: {float(result.agreement):.1%}")

edit.undo()
print("undone bit for bit:", torch.equal(model.visual.attnpool.c_proj.weight, original))
