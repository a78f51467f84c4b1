"""Erase a class from features that were embedded long ago, without the images or the model."""

import open_clip

import clipproj
from clipproj import audit, demo

place = f"local-dir:{demo.model_dir()}"  # a CLIP of drawings that ships in the package
model, _, preprocess = open_clip.create_model_and_transforms(place)
tokenizer = open_clip.get_tokenizer(place)
texts = clipproj.embed_classes(model, tokenizer, demo.class_names(), ["a drawing of a {}."])
images = audit.load_images(demo.images_dir())

# What a vector store holds: half-precision rows of numpy. A file larger than memory is edited in
# the same way, opened by numpy.load(file, mmap_mode="r+").
stored = audit.image_features(model, preprocess, images).numpy().astype("float16")

# Of the contrasts "mean" takes the class deepest out of a search; docs/methods.md compares them.
projector = clipproj.nullspace(texts.select(["cat"]), texts.drop(["cat"]), "mean")

# Part by part. Arrays are taken as they are and rows come back as arrays, rounded once.
edited = stored.copy()
for start in range(0, len(edited), 256):
    edited[start : start + 256] = projector(edited[start : start + 256])

before, after = (audit.Samples.of_images(rows, images, texts) for rows in (stored, edited))
cat = texts.names.index("cat")
for when, samples in (("before", before), ("after", after)):
    first = samples.cosines()[:, cat].topk(9).indices  # a search by the class's text
    print(f"cats among the first 9 hits, {when}: {int((samples.labels[first] == cat).sum())}")
result = audit.compare(before, after, ["cat"])
for name in ("forget", "keep", "nearest", "probe"):  # the probe: what training still finds
    was, now = (float(getattr(scores, name)) for scores in (result.before, result.after))
    print(f"{name:12} {was:6.1%} -> {now:6.1%}")
print(f"same answer as before, all others: {float(result.agreement):.1%}")
