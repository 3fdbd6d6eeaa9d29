"""How much of a video its codes keep: metrics, codecs and baselines at the same bits, rate-distortion."""
