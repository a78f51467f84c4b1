"""Ask what an edit did and did not do: answers, search, other words, classifiers, calibration."""

import open_clip

import clipproj
from clipproj import audit, demo, report

place = f"local-dir:{demo.model_dir()}"  # a CLIP of drawings that ships in the package
model, _, preprocess = open_clip.create_model_and_transforms(place)
tokenizer = open_clip.get_tokenizer(place)
texts = clipproj.embed_classes(model, tokenizer, demo.class_names(), ["a drawing of a {}."])
forget, keep = texts.select(["cat"]), texts.drop(["cat"])
projector = clipproj.nullspace(forget, keep, "hull")

# From names alone, before anything is written: may it be done? `clipproj erase` refuses what may
# not. Mixtures of two class texts stand in for images.
verdict = audit.judge(projector, forget, keep, closed=True)
print(f"refused: {verdict.refused}, the others lose {verdict.price.loss:.1%}")

images = audit.load_images(demo.images_dir())
features = audit.image_features(model, preprocess, images)
samples = audit.Samples.of_images(features, images, texts)
given = audit.AuditInput(samples, projector, ("cat",))

# accuracy: the class, all others, the nearest of them, and a probe. retrieval: search. recover: do
# classifiers find the class in edited features? (They do.) Without `only` all of them are run.
only = ["accuracy", "retrieval", "recover", "drift"]
for result in audit.audit(given, only, words=report.kept):
    page = report.page_of(result)
    print(f"\n{page.title}\n{page.lead}")
