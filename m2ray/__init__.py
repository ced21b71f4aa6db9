"""m2ray: does a latent codec carry the message, or does its prefix merely prime the receiver?"""
