# make demo and make test need nothing but Python, make and a package index: both set up .venv first.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
# Python compiles what is imported when it is imported: a quarter of a gigabyte less on the disk.
PIP    := $(BIN)/python -m pip install --quiet --no-compile
SETUP  := setup.cfg setup.py pyproject.toml constraints.txt

.PHONY: help demo test lint types unit clients format dist clean

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*  ## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(VENV)/.installed  ## three T1w volumes without data of your own, in a few minutes; ends with a picture and a page of them
	$(BIN)/trispade demo --output-dir demo

test: lint types unit  ## everything that .ci/run checks: lint, types, tests

lint: $(VENV)/.installed-test  ## style, format, and which layer imports which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --config setup.cfg --no-logo

types: $(VENV)/.installed-test  ## mypy
	$(BIN)/mypy

unit: $(VENV)/.installed-test  ## the tests; scans are looked for in $TRISPADE_TEST_DATA
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

clients:  ## other people's software that needs an environment of its own; see docs/clients.md
	test -d $(VENV)-clients || $(PYTHON) -m venv $(VENV)-clients
	$(VENV)-clients/bin/python -m pip install --quiet "$(TORCH)"
	$(VENV)-clients/bin/python -m pip install --quiet --editable ".[sharing]" "nvflare>=2.5,<3"
	OMP_NUM_THREADS=1 $(VENV)-clients/bin/python tests/clients/nvflare_two_sites.py build/nvflare
	test -d $(VENV)-label || $(PYTHON) -m venv $(VENV)-label
	$(VENV)-label/bin/python -m pip install --quiet "$(TORCH)" torchvision
	$(VENV)-label/bin/python -m pip install --quiet monailabel==0.8.5 "pydicom<3" "dicomweb-client<0.60" "pynetdicom<3" "itk>=5.3" monai==1.6.1
	$(VENV)-clients/bin/trispade package bundle -o build/trispade.zip
	test -d build/monaibundle || $(VENV)-label/bin/python -m monailabel.main apps --download --name monaibundle --output build
	OMP_NUM_THREADS=2 $(VENV)-label/bin/python tests/clients/monai_label.py build/monaibundle build/trispade.zip \
		pipeline/trispade/anatomies/anatomy-1_dseg.nii.gz build/label
	test -d $(VENV)-deploy || $(PYTHON) -m venv $(VENV)-deploy
	$(VENV)-deploy/bin/python -m pip install --quiet "$(TORCH)"
	$(VENV)-deploy/bin/python -m pip install --quiet monai-deploy-app-sdk==4.0.0 "nvidia-cuda-runtime<14" pydicom highdicom monai==1.6.1 \
		nibabel itk scipy pytorch-ignite fire tensorboard tqdm
	$(VENV)-clients/bin/python -m monai.bundle ckpt_export network_def --filepath build/model.ts --ckpt_file bundle/models/model.pt \
		--meta_file bundle/configs/metadata.json --config_file bundle/configs/inference.yaml --bundle_root bundle
	tests/clients/monai_deploy.sh $(VENV)-deploy build/trispade.zip pipeline/trispade/anatomies/anatomy-1_dseg.nii.gz build/deploy
	PYTHONPATH=pipeline tests/clients/monai_deploy.sh $(VENV)-deploy build/model.ts pipeline/trispade/anatomies/anatomy-1_dseg.nii.gz build/deploy_ts

format: $(VENV)/.installed-test  ## let ruff put style and format right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dist: $(VENV)/.installed-test  ## source distribution and wheel, in dist/
	$(BIN)/python -m build

clean:  ## remove .venv and whatever was built
	rm -rf $(VENV) $(VENV)-clients $(VENV)-label $(VENV)-deploy build dist demo pipeline/*.egg-info

$(VENV)/.installed: $(SETUP)
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) "$(TORCH)"
	$(PIP) --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --constraint constraints.txt --editable ".[test]"
	touch $@
