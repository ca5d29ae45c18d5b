import time
def test_a(raw_beton, jpg_beton, raw_mask):
    from fastkd.data.beton import open_beton
    b = open_beton(raw_beton); j = open_beton(jpg_beton)
    print(b.num_samples, b.size_bytes, j.num_samples, j.heights.min(), j.heights.max(), j.size_bytes)
    from fastkd.data.loader import ViewLoader
    from fastkd.data.views import Views
    for bb,v in ((b,Views("crop-flip",32,162)),(j,Views("rrc",24,4)),(b,Views("crop-flip",32,162))):
        t=time.time(); l=ViewLoader(bb,v); t1=time.time(); list(l.epoch(0)); t2=time.time(); list(l.epoch(1)); print(t1-t,t2-t1,time.time()-t2)
