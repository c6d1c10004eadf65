"""The words of the report that a reader may not know. A part of its texts: see texts.py."""

GLOSSARY = (
    ("Slice", "One picture of a CT scan: a cut through the chest."),
    (
        "Synthetic slice",
        "A slice that a computer program, the generator, has made. It shows no real patient, or should.",
    ),
    ("Generator", "A program that has learned from real slices to make synthetic ones."),
    (
        "Used, not used, unknown",
        "Whether a real slice is known to have trained the generator, known not to, or asked about. Papers "
        "say member and non-member.",
    ),
    ("Set", "One generator with its synthetic slices and the real slices that are compared with them."),
    ("Leak", "The synthetic slices show more of the used patients than of others."),
    ("Attack", "The method by which this audit tries to tell used from not-used slices. It has only the files."),
    ("Control", "The same method where nothing can leak. It shows how far chance or other differences go."),
    ("Score", "A number for each slice: the higher, the more the slice looks as if it had been used."),
    ("AUC", "How often a used slice scores above a not-used one. 0.5 is chance, 1 is perfect."),
    (
        "95 % interval",
        "The range in which a figure would lie with other patients of the same kind, in 95 of 100 cases.",
    ),
    ("p-value", "The probability of a result as strong as this if nothing leaked. Small values speak for a leak."),
    ("False discovery rate", "The share of wrong names in a list of names, on average."),
    (
        "F1",
        "The measure of the ImageCLEF challenge. Calling every slice used gives 0.667 where half were used, "
        "so that figures below it say nothing.",
    ),
    ("Kappa", "The share of right decisions beyond chance: 0 is chance, 1 is perfect."),
    (
        "Precision, recall, specificity",
        "Of the slices called used, the share that was; of the used slices, the share that was found; of the "
        "not-used slices, the share that was left alone.",
    ),
    (
        "True positive rate at a false positive rate of 1 %",
        "The share of used slices that is found when 1 % of the not-used ones are accused.",
    ),
    ("Probability", "How sure the audit is that a slice was used, set by the slices whose answer is known."),
    (
        "Configuration",
        "One way to compute scores: features, part of the slice, method, parameters. The search tries many.",
    ),
    ("Backbone", "What turns a slice into numbers (features): a neural network, or a formula without training."),
    ("View", "The part of the slice that is looked at: full, only the lungs, or all but the lungs (outer)."),
    ("Cluster", "A group of slices that are alike. One cluster should be one generator."),
    ("ARI", "Adjusted Rand index: how well clusters agree with generators. 0 is chance, 1 is perfect."),
    ("NMI, V-measure, purity", "Other measures of the same. They are above 0 by chance."),
    (
        "Silhouette",
        "How much nearer a slice lies to its own cluster than to the next one: 1 is best, 0 is between two.",
    ),
    ("Shortcut", "Something that makes a task look easier or harder than it is, such as the size of the files."),
    ("Flagged", "Called used by the audit's decision about one slice."),
    ("Named", "Called used by the list of patients, which keeps the share of wrong names low."),
    (
        "What the slices show by themselves",
        "Differences between the two groups of patients that are there without any generator, such as another scanner.",
    ),
    ("Null hypothesis", "What the p-value takes for granted: that nothing leaked."),
    (
        "Level",
        "The p-value below which a result counts. At 0.05, a leak is found in at most 5 of 100 audits without a leak.",
    ),
    ("Cross-validated", "Judged on patients from whom nothing was learned."),
    ("Epoch", "One pass of a training over all slices. More passes remember more."),
    ("Differential privacy", "A way to train that bounds what one patient can change."),
    (
        "Blind control",
        "The attack without any synthetic slice: how well the real slices alone tell used from not used.",
    ),
    ("Member-only control", "The attack on two halves of one class, where nothing can be told apart but by chance."),
    ("Vendi score", "How many clearly different slices there are among many that resemble each other."),
    ("t-SNE", "A way to draw slices in a plane so that those that are alike are neighbours."),
    ("Dendrogram", "A tree that joins the two most similar clusters again and again, until one is left."),
    ("SHA-256", "A fingerprint of a file. If one letter of the file changes, it is another one."),
)

# What the search calls its features and its methods, for the tables of what was tried.
NAMES_OF_THE_SEARCH = (
    ("highpass-wW-S", "The slice without what changes slowly over W pixels, S pixels wide. W = 0: the plain slice."),
    ("residual", "Statistics of the noise that is left when a slice is smoothed."),
    ("lbp", "Local binary patterns: how often a pixel is brighter than its neighbours, and which ones."),
    ("measures", "What a slice shows by itself (noise, brightness, position), for the blind control."),
    ("resnet50, densenet121, mobilenetv2_100, ...", "Neural networks that were trained on photographs."),
    ("nearest", "How near the nearest synthetic slices are."),
    ("whitened", "The same, with all directions in which slices vary weighted alike."),
    ("clusters", "How near the nearest group of synthetic slices is."),
    ("span", "How much of a slice lies outside of what the synthetic slices vary in."),
    ("reverse", "Whether a slice is the nearest real one of a synthetic slice."),
    ("contrast", "How near synthetic slices are, less how near the not-used slices are."),
    ("kmeans_per_class, two_means", "Groups of real slices, as published systems use them."),
    (
        "hierarchical, kmeans, gmm",
        "Ways to form clusters: by a dendrogram, by centres, by a mixture of normal distributions.",
    ),
)
