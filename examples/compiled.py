"""Edit a model that torch.compile has compiled: no recompilation, and undone to the bit."""

import open_clip
import torch

import clipproj
from clipproj import audit, demo

place = f"local-dir:{demo.model_dir()}"  # a CLIP of drawings that ships in the package
model, _, preprocess = open_clip.create_model_and_transforms(place)
tokenizer = open_clip.get_tokenizer(place)
texts = clipproj.embed_classes(model, tokenizer, demo.class_names(), ["a drawing of a {}."])
projector = clipproj.nullspace(texts.select(["cat"]), texts.drop(["cat"]), "hull")

images = audit.load_images(demo.images_dir())
pixels = torch.stack([preprocess(audit.open_image(path)) for path in images.paths])

served = torch.compile(model.eval().visual)


def samples():
    features = torch.cat([served(part) for part in pixels.split(97)])  # batches of one size
    return audit.Samples.of_images(features, images, texts)


with torch.no_grad():
    before = samples()
    # From here on a recompilation would be an error.
    with torch._dynamo.config.patch(error_on_recompile=True):
        edit = clipproj.edit(model, projector)  # the same Parameters, which the graph reads
        result = audit.compare(before, samples(), ["cat"])
        edit.undo()
        again = samples()

for name in ("forget", "keep", "nearest", "probe"):  # the probe: what training still finds
    was, now = (float(getattr(scores, name)) for scores in (result.before, result.after))
    print(f"{name:12} {was:6.1%} -> {now:6.1%}")
print(f"same answer as before, all others: {float(result.agreement):.1%}")
print("undone bit for bit:", torch.equal(again.features, before.features))
