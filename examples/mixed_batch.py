"""Many customers in one batch: each row is edited with the projector of whoever asked for it."""

import open_clip
import torch

import clipproj
from clipproj import audit, demo

place = f"local-dir:{demo.model_dir()}"  # a CLIP of drawings that ships in the package
model, _, preprocess = open_clip.create_model_and_transforms(place)
tokenizer = open_clip.get_tokenizer(place)
texts = clipproj.embed_classes(model, tokenizer, demo.class_names(), ["a drawing of a {}."])
images = audit.load_images(demo.images_dir())
features = audit.image_features(model, preprocess, images)  # [n, d], of the unedited model

# The bank holds a projector for each tenant. Tenants come and go while other threads call it, and
# no compiled graph is made again.
bank = clipproj.ProjectorBank(texts.dim)
for tenant, name in (("acme", "cat"), ("umbrella", "dog")):
    bank.add(tenant, clipproj.nullspace(texts.select([name]), texts.drop([name]), "hull"))

# A batch in any order: rows of acme, of nobody, of umbrella, and of somebody who takes both.
asked = ["acme", None, "umbrella", ("acme", "umbrella")]
index = bank.index(asked[i % 4] for i in range(len(features)))
rows = bank(features, index, normalize=True)  # one kernel for all of them

# A row's bits do not depend on who shares its batch.
alone = torch.cat([bank(features[[i]], index[[i]], normalize=True) for i in range(8)])
print("rows alone and in the batch, same bits:", torch.equal(alone, rows[:8]))

# What "acme" sees of all images: its class is gone from the answers, and a probe still finds it.
of_acme = bank(features, bank.index(["acme"] * len(features)))
before, after = (audit.Samples.of_images(f, images, texts) for f in (features, of_acme))
result = audit.compare(before, after, ["cat"])
for name in ("forget", "keep", "nearest", "probe"):
    was, now = (float(getattr(scores, name)) for scores in (result.before, result.after))
    print(f"{name:12} {was:6.1%} -> {now:6.1%}")
print(f"same answer as before, all others: {float(result.agreement):.1%}")
