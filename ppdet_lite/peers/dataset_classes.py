"""Class names of COCO and Pascal VOC in their usual order, for weights files without class names."""

COCO_UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_IDS = tuple(number for number in range(1, 91) if number not in COCO_UNUSED_IDS)
COCO_NAMES = tuple(
    """person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,
bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,
snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,
knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,
dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,
vase,scissors,teddy bear,hair drier,toothbrush""".replace("\n", "").split(",")
)
VOC_NAMES = tuple(
    """aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,person,pottedplant,sheep,
sofa,train,tvmonitor""".replace("\n", "").split(",")
)


def known_classes(count: int) -> tuple[list[str], list[int]] | None:
    """Return names and category ids for COCO's 80 or VOC's 20 classes, and None for any other number of classes."""
    if count == len(COCO_NAMES):
        return list(COCO_NAMES), list(COCO_IDS)
    if count == len(VOC_NAMES):
        return list(VOC_NAMES), list(range(1, count + 1))
    return None
