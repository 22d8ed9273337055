def paint_artgraph(folder, num_artworks=1600, size=96, seed=0, progress=True):
    raise NotImplementedError
