"""Which training rows made a model say what it says: exact leave-one-out, datamodels, TRAK, last-layer kernels.

Each file knows one estimator as pure functions of tensors. An effect tau[i, x, k] is what *including* training row i adds to output k
at point x, so that removing rows subtracts their sum. Estimators differ in scale: `calibration` finds the factor that true retrains ask
for, and `removal` puts it together for a method. Nothing here knows a request's data set or a metric.
"""
